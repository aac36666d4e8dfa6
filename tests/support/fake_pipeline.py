"""A pipeline that takes no time, for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from dynadrag_pipeline.cli import main
from dynadrag_pipeline.pipeline_output import DragIteration, DynaDragPipelineOutput
from dynadrag_pipeline.settings import DragSettings, settings_in_force
from motion_predictor.common.options import options_of

EDIT = ["--handle", "20,30", "--target", "40,30"]
EDITED_COLOUR = (0, 200, 100)


class FakePipeline:
    """Stands in for the pipeline: records how it is loaded and called, and returns an edit of two iterations."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, torch.dtype]] = []
        self.calls: list[dict] = []
        self.moved_to: list[str] = []
        self.progress: list[dict] = []
        self.identity_lora: list[tuple[str, Path]] = []
        self.load_error: BaseException | None = None
        self.call_error: BaseException | None = None
        self.loss = 0.25
        self.saving: list[str] = []
        self.during_call: Callable[[], object] = lambda: None

    def from_pretrained(self, model: str, dtype: torch.dtype, safety_checker: None, **parts: object) -> FakePipeline:
        self.loaded.append((model, dtype))
        self.parts = parts
        if self.load_error:
            raise self.load_error
        return self

    def to(self, device: str) -> FakePipeline:
        self.moved_to.append(device)
        return self

    @property
    def unet(self) -> FakePipeline:
        return self

    def enable_gradient_checkpointing(self) -> None:
        self.saving.append("checkpointing")

    def enable_model_cpu_offload(self, device: str) -> None:
        self.saving.append(f"offload from {device}")

    def set_progress_bar_config(self, **config: bool) -> None:
        self.progress.append(config)

    def save_identity_lora(self, directory: Path) -> None:
        self.identity_lora.append(("save", directory))

    def load_identity_lora(self, directory: Path) -> None:
        self.identity_lora.append(("load", directory))

    def __call__(self, image, handles, targets, prompt="", **options) -> DynaDragPipelineOutput:
        self.calls.append({"image": image, "handles": handles, "targets": targets, "prompt": prompt, **options})
        self.during_call()
        if self.call_error:
            raise self.call_error
        start, end = torch.tensor(handles, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)
        way = torch.stack([start, start + (end - start) / 4, start + (end - start) / 2])
        return DynaDragPipelineOutput(
            images=[Image.new("RGB", image.size, EDITED_COLOUR)],
            trajectories=way,
            iterations=[self._iteration(way[step], way[step + 1]) for step in range(2)],
            stop_reason="stalled",
            motion_source="predicted",
            provenance={"versions": {"torch": "2"}, "seed": 5},
            settings=settings_in_force(
                {name: value for name, value in options.items() if name in options_of(DragSettings)},
                options.get("settings"),
                options.get("preset"),
            ),
        )

    def _iteration(self, before: torch.Tensor, after: torch.Tensor) -> DragIteration:
        every = torch.ones(len(before))
        picture, flow = torch.full((3, 64, 64), float(after[0, 0]) / 64), torch.zeros(2, 64, 64)
        return DragIteration(
            before, after - before, after - before, every > 0, every, self.loss, 0.125, 1, picture, flow
        )


def edit(portrait: Path, out: Path, *options: str) -> int:
    return main(["edit", str(portrait), "--out", str(out), *options])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def the_error(capsys) -> str:
    """What was printed on stderr, which must be one line that starts as errors do."""
    text = capsys.readouterr().err
    assert text.startswith("dynadrag: error: ")
    assert text.count("\n") == 1
    return text
