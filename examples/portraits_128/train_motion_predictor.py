"""Train the motion predictor of the embedded checkpoint on synthetic motion of still portraits, 128x128.

python examples/portraits_128/train_motion_predictor.py --pictures portraits.zip faces.zip \\
    --landmarks portraits_landmarks.npz faces_landmarks.npz --hold-out faces.zip --out runs/motion_predictor

Landmarks: one npz per source of pictures, with `files` [N] and `landmarks` [N, 478, 3] (MediaPipe face mesh; x, y and
z as a fraction of the side).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from fit import fit
from synthetic_motion import STEP_SHARE, Faces, MotionBatch, draw_motion_batch, load_faces

from motion_predictor import MotionPredictorModel
from motion_predictor.conditioning import is_wrong_way, move_handles, rasterize_points, sample_flow

HANDLE_WEIGHT = 10.0
SMALLEST_STEP = 0.1  # pixels: below, errors count as they are and not relative to the step
ARRIVED = 1.0  # pixels: 4 of 512
ITERATIONS = 25
PICTURES_AT_ONCE = 16


def build_motion_predictor() -> MotionPredictorModel:
    """SimVP with 0.41 M parameters; `delta_scale` brings drags of some ten pixels to the order of the picture's."""
    return MotionPredictorModel(
        hidden_channels_spatial=16,
        hidden_channels_translator=96,
        num_translator_blocks=2,
        sample_size=128,
        delta_paint="disc",
        delta_scale=0.1,
    )


def predict(
    model: MotionPredictorModel, batch: MotionBatch, handles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow for handles that may have left their places, and their heatmap."""
    config = model.config
    delta_map, heatmap = rasterize_points(
        handles,
        batch.targets,
        *batch.pictures.shape[-2:],
        radius=config["heatmap_radius"],
        delta_paint=config["delta_paint"],
        delta_convention=config["delta_convention"],
        delta_scale=config["delta_scale"],
        valid=batch.valid,
    )
    sample = torch.cat([batch.pictures, delta_map, heatmap], dim=1).contiguous(memory_format=torch.channels_last)
    flow = torch.cat([model(part).flow for part in sample.split(PICTURES_AT_ONCE)])
    return flow, heatmap


def motion_loss(model: MotionPredictorModel, batch: MotionBatch) -> torch.Tensor:
    """Squared error of the flow, eleven-fold on the discs of the handles, relative to the step of each sample.

    Relative, since an absolute error would leave short ways untaught: and every way is short before it ends.
    """
    flow, heatmap = predict(model, batch, batch.handles)
    weight = 1 + HANDLE_WEIGHT * heatmap
    error = (weight * (flow - batch.flow).square()).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    steps = sample_flow(batch.flow, batch.handles).square().sum(dim=-1) * batch.valid
    step_squared = steps.sum(dim=1) / batch.valid.sum(dim=1)
    return (error / (step_squared + SMALLEST_STEP**2)).mean()


@torch.no_grad()
def evaluate(model: MotionPredictorModel, faces: Faces, count: int = 128, seed: int = 0) -> dict[str, float]:
    """Figures on motions of held-out faces, at handles whose way is longer than `ARRIVED`, in pixels at 128x128."""
    batch = draw_motion_batch(faces, count, torch.Generator().manual_seed(seed), augment=False)
    way = batch.targets - batch.handles
    judged = batch.valid & (way.norm(dim=-1) > ARRIVED)
    label = sample_flow(batch.flow, batch.handles)
    predicted = sample_flow(predict(model, batch, batch.handles)[0], batch.handles)
    beta = ((label * way)[judged].sum() / way[judged].square().sum()).item()

    def endpoint_error(step: torch.Tensor) -> float:
        return (step - label).norm(dim=-1)[judged].mean().item()

    def wrong_ways(step: torch.Tensor) -> float:
        return is_wrong_way(step, batch.handles, batch.targets)[judged].float().mean().item()

    def rollout(step_of_the_way: float | None) -> tuple[float, float]:
        handles = batch.handles
        for _ in range(ITERATIONS):
            if step_of_the_way is None:
                step = sample_flow(predict(model, batch, handles)[0], handles)
            else:
                step = step_of_the_way * (batch.targets - handles)
            handles = move_handles(handles, step, (128, 128))
        left = (batch.targets - handles).norm(dim=-1)[judged]
        return (left / way.norm(dim=-1)[judged]).mean().item(), (left < ARRIVED).float().mean().item()

    remaining, arrived = rollout(None)
    remaining_straight, arrived_straight = rollout(STEP_SHARE)
    return {
        "handles": judged.sum().item(),
        "mean_way": way.norm(dim=-1)[judged].mean().item(),
        "endpoint_error": endpoint_error(predicted),
        "endpoint_error_zero_flow": endpoint_error(torch.zeros_like(label)),
        "endpoint_error_straight_tenth": endpoint_error(STEP_SHARE * way),
        "endpoint_error_best_linear": endpoint_error(beta * way),
        "best_linear_beta": beta,
        "cosine_to_target": torch.cosine_similarity(predicted, way, dim=-1)[judged].mean().item(),
        "wrong_way_rate": wrong_ways(predicted),
        "wrong_way_rate_of_labels": wrong_ways(label),
        "rollout_remaining_share": remaining,
        "rollout_arrival_rate": arrived,
        "rollout_remaining_share_straight_tenth": remaining_straight,
        "rollout_arrival_rate_straight_tenth": arrived_straight,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--landmarks", type=Path, nargs="+", required=True, help="npz of landmarks for each of them")
    parser.add_argument("--hold-out", type=Path, help="the one of --pictures that keeps 60 faces back for evaluation")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the model")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    faces, held_out = load_faces(args.pictures, args.landmarks, size=128, held_out_from=args.hold_out)
    model = build_motion_predictor().to(memory_format=torch.channels_last)

    def loss_function(generator: torch.Generator) -> torch.Tensor:
        return motion_loss(model, draw_motion_batch(faces, args.batch_size, generator))

    ema = fit(model, loss_function, args.out, args.steps, args.learning_rate, ema_decay=0.998, seed=args.seed)
    ema.copy_to(model.parameters())
    model.eval().save_pretrained(args.out / "motion_predictor")
    if held_out is not None:
        figures = evaluate(model, held_out)
        (args.out / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name, value in figures.items():
            print(f"{name:40} {value:.4f}")


if __name__ == "__main__":
    main()
