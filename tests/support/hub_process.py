"""What users do with a Hub, in a process of its own, since addresses and caches of the Hub are read at import.

`python hub_process.py CASE FOLDER`: FOLDER holds `picture.safetensors`. Edited pictures go to
`FOLDER/CASE.safetensors`, all else that there is to say to `FOLDER/CASE.json`.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline, ModularPipeline, ModularPipelineBlocks, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
CASE, FOLDER = sys.argv[1], Path(sys.argv[2])
PICTURE = load_file(FOLDER / "picture.safetensors")["picture"]
RECOMMENDED = json.loads((FOLDER / "recommended.json").read_text())
pictures: dict[str, torch.Tensor] = {}
facts: dict[str, Any] = {}


def edit(name: str, pipe: Any) -> None:
    """Drag the picture as the tests do in their own process, by the settings that came along, and keep the result."""
    pipe.set_progress_bar_config(disable=True)
    brought_along = pipe.config.get("recommended_settings")
    facts[f"{name}, settings"] = "of the checkpoint" if brought_along else "given"
    result = pipe(
        image=PICTURE,
        handles=[(40, 30), (20, 50)],
        targets=[(60, 50), (10, 40)],
        settings=None if brought_along else RECOMMENDED,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    )
    pictures[name] = result.images
    if not isinstance(pipe, ModularPipeline):
        facts[f"{name} by"] = result.motion_source


def installed() -> None:
    from dynadrag_pipeline import DynaDragPipeline, MotionPredictorModel
    from dynadrag_pipeline.modular_blocks import DynaDragBlocks

    pipe = DynaDragPipeline.from_pretrained("org/dynadrag")
    edit("from the Hub", pipe)
    edit("from an index of diffusers' own", DynaDragPipeline.from_pretrained("org/plain"))
    edit("from the cache", DynaDragPipeline.from_pretrained("org/dynadrag", local_files_only=True))
    facts["installed classes"] = type(pipe) is DynaDragPipeline and type(pipe.motion_predictor) is MotionPredictorModel

    facts["left out"] = (
        DynaDragPipeline.from_pretrained("org/dynadrag", motion_predictor=None).motion_predictor is None
    )
    passed = DynaDragPipeline.from_pretrained("org/dynadrag", motion_predictor=pipe.motion_predictor)
    facts["passed is kept"] = passed.motion_predictor is pipe.motion_predictor
    dtypes = {"unet": torch.bfloat16, "motion_predictor": torch.float16, "default": torch.float32}
    mixed = DynaDragPipeline.from_pretrained("org/dynadrag", dtype=dtypes)
    facts["dtypes"] = [str(mixed.unet.dtype), str(mixed.motion_predictor.dtype), str(mixed.vae.dtype)]

    pipe.push_to_hub("me/pipeline")
    edit("pushed", DynaDragPipeline.from_pretrained("me/pipeline"))
    pipe.push_to_hub("me/variant", variant="fp16")
    edit("pushed as a variant", DynaDragPipeline.from_pretrained("me/variant", variant="fp16"))
    pipe.push_to_hub("me/with-card")
    pipe.motion_predictor.push_to_hub("me/predictor")
    pipe.save_pretrained(str(FOLDER / "saved-and-pushed"), push_to_hub=True, repo_id="me/saved-and-pushed")

    modular = DynaDragBlocks().init_pipeline("org/dynadrag")
    modular.load_components()
    edit("in blocks", modular)
    modular.push_to_hub("me/modular")
    pushed = DynaDragBlocks().init_pipeline("me/modular")
    pushed.load_components()
    edit("in pushed blocks", pushed)

    predictor = MotionPredictorModel.from_pretrained("me/predictor")
    components = {"safety_checker": None, "motion_predictor": predictor}
    edit("from parts", DynaDragPipeline.from_pretrained("org/stable-diffusion", **components))
    facts["warnings of loading and pushing"] = list(facts.get("warnings", []))
    try:
        DynaDragPipeline.from_pretrained("org/gaps")
    except ValueError as error:
        facts["with gaps"] = str(error)
    generator = StableDiffusionPipeline.from_pretrained("org/stable-diffusion", safety_checker=None)
    edit("from a pipe", DynaDragPipeline.from_pipe(generator, motion_predictor=predictor))
    facts["remote code"] = [name for name in sys.modules if name.startswith("diffusers_modules.")]


def not_installed() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    try:
        import dynadrag_pipeline  # noqa: F401
    except ModuleNotFoundError:
        facts["really not installed"] = True
    try:
        DiffusionPipeline.from_pretrained("org/dynadrag")
    except ValueError as error:
        facts["without trust"] = str(error)

    pipe = DiffusionPipeline.from_pretrained("org/dynadrag", trust_remote_code=True)
    edit("from the Hub", pipe)
    facts["class"] = type(pipe).__name__
    pipe.save_pretrained(FOLDER / "saved-again")
    again = DiffusionPipeline.from_pretrained(str(FOLDER / "saved-again"), trust_remote_code=True)
    edit("saved again", again)
    again.push_to_hub("me/again")
    edit("pushed again", DiffusionPipeline.from_pretrained("me/again", trust_remote_code=True))

    predictor = AutoModel.from_pretrained("me/predictor", trust_remote_code=True)
    parts = DiffusionPipeline.from_pretrained(
        "org/stable-diffusion", custom_pipeline="org/dynadrag", trust_remote_code=True, motion_predictor=predictor
    )
    edit("from parts", parts)
    parts.save_pretrained(FOLDER / "parts")
    saved = DiffusionPipeline.from_pretrained(str(FOLDER / "parts"), trust_remote_code=True)
    edit("parts, saved", saved)
    predictor.save_pretrained(FOLDER / "predictor-again")
    reloaded = AutoModel.from_pretrained(str(FOLDER / "predictor-again"), trust_remote_code=True)
    facts["predictor saved again"] = type(reloaded).__name__

    modular = ModularPipeline.from_pretrained("me/modular", trust_remote_code=True)
    modular.load_components(trust_remote_code=True)
    edit("in blocks", modular)
    blocks = ModularPipelineBlocks.from_pretrained("me/modular", trust_remote_code=True)
    ours = blocks.init_pipeline("me/modular")
    ours.load_components(trust_remote_code=True)
    ours.save_pretrained(FOLDER / "modular-again")
    saved = ModularPipeline.from_pretrained(str(FOLDER / "modular-again"), trust_remote_code=True)
    saved.load_components(trust_remote_code=True)
    edit("in saved blocks", saved)


class Warnings(logging.Handler):
    """Keeps what diffusers warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        facts.setdefault("warnings", []).append(record.getMessage())


diffusers_logging.get_logger("diffusers").addHandler(Warnings())
{"installed": installed, "not_installed": not_installed}[CASE]()
save_file(pictures, FOLDER / f"{CASE}.safetensors")
(FOLDER / f"{CASE}.json").write_text(json.dumps(facts))
