"""The nodes. Pictures are IMAGE, `(batch, height, width, channels)` in [0, 1]; masks MASK, `(batch, height, width)`.

ComfyUI runs nodes in torch's inference mode, in which there are no gradients, ever: whatever is made in it, models
too, is of no use to an edit. So each node leaves it first, and copies what it is given.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_MOTION_PREDICTOR, DynaDragPipeline, MotionPredictorModel
from dynadrag_pipeline.motion.names import MOTION_NAMES
from dynadrag_pipeline.settings import PRESETS
from dynadrag_pipeline.visualization import draw_trajectories
from motion_predictor.common.checks import got

from .points import Drags, read_points
from .progress import raise_if_cancelled, shown_in_comfy

PIPELINE = "DYNADRAG_PIPELINE"
EMBEDDED = "embedded"
THE_MODELS_OWN = "the model's own"
BY_ITSELF = "auto"
DTYPES = (BY_ITSELF, "float32", "float16", "bfloat16")
DEVICES = (BY_ITSELF, "cuda", "mps", "cpu")

POINTS = (
    "STRING",
    {
        "multiline": True,
        "dynamicPrompts": False,
        "default": '{"points": [[100, 100], [120, 100]]}',
        "tooltip": "In pixels of the picture: an instruction file's JSON, handle, target, handle, target, ...; or the "
        "coordinates of a spline editor, whose first point is a handle and whose last is its target.",
    },
)
MOTION = (
    [BY_ITSELF, *MOTION_NAMES],
    {
        "default": BY_ITSELF,
        "tooltip": "Where handles go next. auto: along splines that bend, else as the motion predictor says, else "
        "straight.",
    },
)
MASK = ("MASK", {"tooltip": "1 where the picture may change; an empty one means everywhere, as none does."})


class DynaDragLoader:
    """A model with which pictures are dragged."""

    CATEGORY = "DynaDrag"
    DESCRIPTION = "Load a model for dragging: any Stable Diffusion 1.x or 2.x in diffusers' layout."
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (
                    "STRING",
                    {
                        "default": EMBEDDED,
                        "tooltip": "A folder, or an id of the Hub; `embedded` is the small portrait model that comes "
                        "with the package, and knows faces at 128 pixels alone.",
                    },
                ),
                "motion_predictor": (
                    "STRING",
                    {
                        "default": THE_MODELS_OWN,
                        "tooltip": "A folder, or an id of the Hub; `embedded` is the one that comes with the package, "
                        "for any model.",
                    },
                ),
                "device": (list(DEVICES), {"default": BY_ITSELF}),
                "dtype": (list(DTYPES), {"default": BY_ITSELF, "tooltip": "auto: float16 on cuda, else float32."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model: str | None, motion_predictor: str | None, **_: Any) -> str:
        """Another answer once a folder was written anew; what is linked is None here, and compared by ComfyUI."""
        return f"{_written(model)} {_written(motion_predictor)}"

    @torch.inference_mode(False)
    def load(self, model: str, motion_predictor: str, device: str, dtype: str) -> tuple[DynaDragPipeline]:
        """The pipeline, on its device."""
        device = _device(device)
        number = getattr(torch, dtype if dtype != BY_ITSELF else "float16" if device == "cuda" else "float32")
        given: dict[str, Any] = {}
        if motion_predictor != THE_MODELS_OWN:
            place = _place(motion_predictor, EMBEDDED_MOTION_PREDICTOR)
            given["motion_predictor"] = MotionPredictorModel.from_pretrained(place, dtype=number)
        pipe = DynaDragPipeline.from_pretrained(
            _place(model, EMBEDDED_CHECKPOINT), dtype=number, safety_checker=None, **given
        )
        return (pipe.to(device),)


class _OnPictures:
    """What the nodes that take points have in common."""

    CATEGORY = "DynaDrag"
    INPUTS: ClassVar[dict[str, Any]] = {
        "pipeline": (PIPELINE,),
        "image": ("IMAGE",),
        "points": POINTS,
    }

    @classmethod
    def VALIDATE_INPUTS(cls, points: str | list[str] | None = None) -> bool | str:
        """Say what is wrong with points before anything is run; those of a link are not known yet."""
        try:
            if points is not None:
                read_points(points)
        except ValueError as error:
            return str(error)
        return True


class DynaDragPreview(_OnPictures):
    """Where a drag would lead."""

    DESCRIPTION = (
        "Show where a drag would lead, in a fraction of a second: the picture itself, bent along the motion. It is "
        "not the edit."
    )
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("preview", "disoccluded", "paths")
    OUTPUT_TOOLTIPS = (
        "The bent picture: not the edit.",
        "What comes into view, which an edit would have to invent.",
        "The way of each handle, as a spline editor writes it.",
    )
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **cls.INPUTS,
                "draw_paths": ("BOOLEAN", {"default": True, "tooltip": "Draw the way of each handle."}),
            },
            "optional": {"mask": MASK, "motion": MOTION},
        }

    @torch.inference_mode(False)
    def preview(
        self,
        pipeline: DynaDragPipeline,
        image: torch.Tensor,
        points: str | list[str],
        draw_paths: bool,
        mask: torch.Tensor | None = None,
        motion: str = BY_ITSELF,
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        """A preview of each picture, what comes into view in it, and the paths of the last."""
        shown, disoccluded, paths = [], [], torch.zeros(0, 1, 2)
        for picture, selected in _pictures(image, mask):
            raise_if_cancelled()
            drags = read_points(points, (picture.shape[-2], picture.shape[-1]))
            preview = pipeline.preview(
                picture, drags.handles, drags.targets, mask=selected, motion=_motion(motion, drags)
            )
            paths = preview.paths
            drawn = preview.image
            if draw_paths:
                drawn = draw_trajectories(drawn, paths.transpose(0, 1), drags.targets)
            shown.append(pipeline.image_processor.pil_to_numpy(drawn)[0])
            disoccluded.append(preview.disoccluded.float())
        splines = [[{"x": round(x, 2), "y": round(y, 2)} for x, y in path] for path in paths.tolist()]
        return torch.stack([torch.from_numpy(each) for each in shown]), torch.stack(disoccluded), json.dumps(splines)


class DynaDragEdit(_OnPictures):
    """The edit."""

    DESCRIPTION = "Move the content at each handle to its target, by diffusion."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    OUTPUT_TOOLTIPS = ("The edited picture.", "JSON: why each edit ended, and where the content went.")
    FUNCTION = "edit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **cls.INPUTS,
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": False}),
                "preset": (
                    [THE_MODELS_OWN, *PRESETS],
                    {"default": THE_MODELS_OWN, "tooltip": "Options by name; by default those that the model brings."},
                ),
                "iterations": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 10_000,
                        "tooltip": "At most so many: more for longer ways, fewer for less time; 0 as the preset says.",
                    },
                ),
            },
            "optional": {
                "mask": MASK,
                "motion": MOTION,
                "prompt": ("STRING", {"default": "", "multiline": True, "tooltip": "What the picture shows."}),
                "settings": (
                    "STRING",
                    {
                        "default": "{}",
                        "multiline": True,
                        "dynamicPrompts": False,
                        "tooltip": 'All other options, as JSON: {"restore_source": true, "supervision_steps": 10}.',
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, points: str | list[str] | None = None, settings: str | None = None) -> bool | str:
        """Say what is wrong with points and settings before anything is run."""
        try:
            _settings(settings or "{}")
        except ValueError as error:
            return str(error)
        return super().VALIDATE_INPUTS(points)

    @torch.inference_mode(False)
    def edit(
        self,
        pipeline: DynaDragPipeline,
        image: torch.Tensor,
        points: str | list[str],
        seed: int,
        preset: str,
        iterations: int,
        mask: torch.Tensor | None = None,
        motion: str = BY_ITSELF,
        prompt: str = "",
        settings: str = "{}",
    ) -> tuple[torch.Tensor, str]:
        """Each picture, edited, and a report on each."""
        options = _settings(settings) | ({"max_iterations": iterations} if iterations else {})
        edited, reports = [], []
        for picture, selected in _pictures(image, mask):
            drags = read_points(points, (picture.shape[-2], picture.shape[-1]))
            with shown_in_comfy(pipeline):
                output: Any = pipeline(
                    picture,
                    drags.handles,
                    drags.targets,
                    mask=selected,
                    prompt=prompt or drags.prompt,
                    motion=_motion(motion, drags),
                    settings=options,
                    preset=None if preset == THE_MODELS_OWN else preset,
                    generator=torch.Generator("cpu").manual_seed(seed),
                    callback_on_step_end=_look_up,
                    output_type="pt",
                )
            edited.append(output.images[0].float().cpu().movedim(0, -1))
            reports.append(
                {
                    "stop_reason": output.stop_reason,
                    "iterations": len(output.iterations),
                    "motion_source": output.motion_source,
                    "content": None if output.content is None else output.content.summary,
                }
            )
        return torch.stack(edited), json.dumps(reports, indent=2)


def _look_up(pipe: Any, iteration: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """After each iteration: has the user cancelled?"""
    raise_if_cancelled()
    return {}


def _pictures(image: torch.Tensor, mask: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Each picture of a batch `(channels, height, width)` with its mask `(height, width)`, copied.

    One mask serves all pictures. An empty one is what ComfyUI has for a picture without transparency.
    """
    masks: list[torch.Tensor | None] = [None] * len(image)
    if mask is not None:
        given = mask.clone().float().reshape(-1, *mask.shape[-2:])
        if len(given) not in (1, len(image)):
            raise ValueError(f"`mask` must be one, or one for each of the {len(image)} pictures, got {len(given)}.")
        each = given.expand(len(image), -1, -1) if len(given) == 1 else given
        masks = [one.clamp(0, 1) if (one >= 0.5).any() else None for one in each]
    pictures = image.clone().float().clamp(0, 1).movedim(-1, 1)  # samplers go beyond by a little
    return list(zip(pictures, masks, strict=True))


def _motion(name: str, drags: Drags) -> Any:
    return drags.drawn if name == BY_ITSELF else name


def _settings(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text.strip() or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`settings` must be a JSON object of options, got {got(text)}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"`settings` must be a JSON object of options, got {got(values)}.")
    return values


def _device(name: str) -> str:
    """The device to compute on; `auto` is the first of cuda, mps and cpu that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == BY_ITSELF:
        return next(device for device, is_there in there.items() if is_there)
    if not there.get(name):
        raise ValueError(
            f"`device` must be one that is here, {', '.join(k for k, v in there.items() if v)}; got {name}."
        )
    return name


def _place(model: str, embedded: Path) -> str:
    """Where a model is: a folder, or else an id of the Hub."""
    return str(embedded) if model == EMBEDDED else os.path.expanduser(model)


def _written(model: str | None) -> float:
    """When the index of a model in a folder was written; 0 for others."""
    if model is None:
        return 0.0
    files = (Path(os.path.expanduser(model), name) for name in ("model_index.json", "config.json"))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
