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
    args = parser.parse_args()
    store(args.trained, args.folder)
    print(f"wrote {args.folder}")


def store(trained: Path, folder: Path) -> None:
    """Write weights in half precision and the config, without the code that travels to the Hub.

    Args:
        trained (`Path`): folder of a [`MotionPredictorModel`].
        folder (`Path`): is made if it is not there.
    """
    model = MotionPredictorModel.from_pretrained(trained, dtype=torch.float16)
    config = {name: value for name, value in json.loads(model.to_json_string()).items() if name != "_name_or_path"}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, content in (
        (WEIGHTS, save(weights, metadata={"format": "pt"})),
        (CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()),
    ):
        with atomic_file(folder / name) as file:
            file.write(content)


if __name__ == "__main__":
    main()
