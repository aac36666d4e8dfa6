"""The sources of motion that have a name. No torch here, so that help is answered at once."""

MOTION_NAMES = {
    "predicted": "by the model's motion predictor (DynaDrag)",
    "straight": "straight, in equal steps",
    "track": "a unit step, after which the content is tracked by its features (DragGAN, DragDiffusion)",
    "search": "where a search along the line to the target finds the next step easy enough (FreeDrag)",
}
"""What `motion=` may be by name, with a text for each."""
