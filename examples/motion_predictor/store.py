"""Store a trained motion predictor in half precision, as the package holds it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save

from motion_predictor import MotionPredictorModel
from motion_predictor.common.atomic_file import atomic_file

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="folder of a MotionPredictorModel")
    parser.add_argument("folder", type=Path, help="where its weights and config are written; what else is there stays")
    parser.add_argument(
        "--step-share",
        type=float,
        metavar="SHARE",
        help="leave out what it answers for the next step: that is so large a share of the whole way",
    )
    args = parser.parse_args()
    store(args.trained, args.folder, args.step_share)
    print(f"wrote {args.folder}")


def store(trained: Path, folder: Path, step_share: float | None = None) -> None:
    """Write weights in half precision and the config, without the code that travels to the Hub.

    Args:
        trained (`Path`): folder of a [`MotionPredictorModel`].
        folder (`Path`): is made if it is not there.
        step_share (`float`, *optional*): of the whole way, that takes the place of its answer for the next step.
    """
    model = MotionPredictorModel.from_pretrained(trained, dtype=torch.float16)
    if step_share:
        model = without_step(model, step_share)
    config = {name: value for name, value in json.loads(model.to_json_string()).items() if name != "_name_or_path"}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, content in (
        (WEIGHTS, save(weights, metadata={"format": "pt"})),
        (CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()),
    ):
        with atomic_file(folder / name) as file:
            file.write(content)


def without_step(model: MotionPredictorModel, step_share: float) -> MotionPredictorModel:
    """The same network without the half of its last layer that answers for the next step.

    Args:
        model ([`MotionPredictorModel`]): with the horizons `"step"` and `"total"`, and an answer for each.
        step_share (`float`): of the whole way.

    Returns:
        [`MotionPredictorModel`]: that predicts the same whole way.
    """
    arguments = {name: value for name, value in model.config.items() if not name.startswith("_")}
    shorter = MotionPredictorModel(**{**arguments, "step_share": step_share}).to(model.dtype)
    weights = model.state_dict()
    for name in ("decoder.readout.weight", "decoder.readout.bias"):
        weights[name] = weights[name].chunk(2)[1]
    shorter.load_state_dict(weights)
    return shorter


if __name__ == "__main__":
    main()
