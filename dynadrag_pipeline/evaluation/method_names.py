"""What the methods of an evaluation are called. No torch here, so that help is answered at once."""

from ..motion.names import MOTION_NAMES

NO_EDIT, BEND, TRUE_MOTION, ONE_STEP = "no edit", "bend", "true motion", "one-step"

METHOD_NAMES = (
    NO_EDIT,
    BEND,
    TRUE_MOTION,
    ONE_STEP,
    *(name for name in MOTION_NAMES if name != "predicted"),
    "predicted",
)
"""In the order of tables: what is compared with, rivals, and last the paper's."""


def folder_name(method: str) -> str:
    """How the folder of a method's pictures is called.

    Example:
        >>> folder_name("strength 0.5")
        'strength_0_5'
    """
    return "".join(letter if letter.isalnum() else "_" for letter in method)


def back_of(method: str) -> str:
    """What the edits of a method's edits, back from where they led, are filed under.

    Args:
        method (`str`): its name.

    Returns:
        `str`: a name that no row may have, nor one that is called the same as a folder.

    Example:
        >>> back_of("straight")
        'straight (back)'
    """
    return f"{method} (back)"
