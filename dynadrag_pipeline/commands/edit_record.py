"""The record of an edit, `result.json`: what was asked for, with which settings, and what came of it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motion_predictor.common.json_file import as_json_values

from .edit_job import Job
from .edit_model import EMBEDDED

if TYPE_CHECKING:
    from PIL import Image

    from ..content import ContentLocations
    from ..pipeline_output import DynaDragPipelineOutput


def edit_record(args: argparse.Namespace, job: Job, output: DynaDragPipelineOutput) -> dict[str, Any]:
    """What result.json holds; every number of it can be read without torch."""
    import torch

    trajectories = torch.as_tensor(output.trajectories)
    remaining = (trajectories[-1] - torch.tensor(job.targets, dtype=torch.float32)).norm(dim=-1)
    moving = ~torch.tensor(job.pins)
    picture = cast("Image.Image", output.images[0])
    assert output.settings is not None
    return {
        "versions": output.provenance.get("versions"),
        "image": _shown(args.image),
        "mask": None if args.mask is None else _shown(args.mask),
        "model": args.model or EMBEDDED,
        "motion_predictor": args.motion_predictor,
        "preset": args.preset,
        "device": args.device,
        "dtype": args.dtype,
        "seed": args.seed,
        "seed_drawn": output.provenance.get("seed"),
        "prompt": job.call["prompt"],
        "settings": output.settings.record(),
        "cross_attention_kwargs": args.cross_attention_kwargs,
        "preview_vae": args.preview_vae,
        "loaded_identity_lora": None if args.load_identity_lora is None else _shown(args.load_identity_lora),
        "handles": job.call["handles"],
        "targets": job.targets,
        "pins": job.pins,
        "size": {"width": picture.width, "height": picture.height},
        "motion_source": output.motion_source,
        "paths": job.call["motion"] if isinstance(job.call.get("motion"), list) else None,
        "stop_reason": output.stop_reason,
        "mean_remaining_distance": float(remaining[moving].mean()) if moving.any() else 0.0,
        "content": None if output.content is None else cast("ContentLocations", output.content).record(),
        "trajectories": trajectories.tolist(),
        "iterations": [
            {
                name: _number_or_list(value)
                for name, value in vars(step).items()
                if name not in ("image", "flow") and value is not None
            }
            for step in output.iterations
        ],
        "files": {name: _shown(Path(path.name)) for name, path in job.files.items()},
    }


def _shown(path: Path) -> str:
    """A path as text: letters that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _number_or_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def record_text(record: dict[str, Any]) -> bytes:
    """The content of `result.json`."""
    text = json.dumps(as_json_values(record, places=6), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
