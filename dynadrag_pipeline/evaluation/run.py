"""A run: every pair edited by every method, measured, and written down; resumable, and shared by processes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.picture_files import open_picture

from ..pipeline_dynadrag import DynaDragPipeline
from ..session import DragSession
from ..session_file import models_content
from .methods import Method
from .metrics import Metrics
from .pairs import EvaluationPair
from .records import Record, RecordFile, read_records


class EvaluationRun:
    """Edits of pairs by methods, in a folder: pictures, and a line of JSON for each.

    A picture's identity LoRA, inversion and reference are made once for all methods. What is done already is not done
    again; a run that was killed ends with the figures of one that was not.

    Args:
        pipe ([`DynaDragPipeline`]): edits.
        folder (`Path`): of the run.
        metrics ([`Metrics`]): what pictures are measured by.
        settings (`dict`, *optional*): options of all edits, over those that the pipeline recommends.
        preset (`str`, *optional*): options by name, in the place of those.
    """

    def __init__(
        self,
        pipe: DynaDragPipeline,
        folder: Path,
        metrics: Metrics,
        settings: dict[str, Any] | None = None,
        preset: str | None = None,
    ) -> None:
        self.pipe = pipe
        self.folder = folder
        self.metrics = metrics
        self.settings = {**(settings or {}), "locate_content": True}
        self.preset = preset
        values = vars(pipe.settings_in_force(self.settings, preset=preset).settings)
        self._depends_on = json.dumps([values, models_content(pipe), sorted(metrics.wanted)], sort_keys=True)
        self._passes = 0
        pipe.unet.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def mark(self, method: Method, pair: EvaluationPair) -> str:
        """Hash of all that an edit depends on."""
        parts = [self._depends_on, method.name, pair.name]
        digest = hashlib.sha256(json.dumps(parts).encode())
        for array in (pair.source, pair.target, pair.mask, pair.handles, pair.targets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, pairs: Sequence[EvaluationPair], methods: Sequence[Method]) -> list[Record]:
        """Make the edits that are not there yet, shared by all processes of `accelerate`.

        Args:
            pairs (`Sequence` of [`EvaluationPair`]): to edit.
            methods (`Sequence` of [`Method`]): how.

        Returns:
            `list` of [`Record`]: of all pairs and methods, in their order, in every process.
        """
        state = PartialState()
        file = RecordFile(self.folder / f"records.{state.process_index:03d}.jsonl")
        mine = list(pairs)[state.process_index :: state.num_processes]
        for pair in tqdm(mine, desc="Evaluating", unit="pair", disable=not state.is_main_process):
            done = read_records(self.folder)
            missing = [each for each in methods if (pair.name, each.name, self.mark(each, pair)) not in done]
            for record in self._edits(pair, missing):
                file.append(record)
        state.wait_for_everyone()
        records = read_records(self.folder)
        return [records[pair.name, each.name, self.mark(each, pair)] for pair in pairs for each in methods]

    def picture_path(self, method: str, pair: str) -> Path:
        """Where the edit of a pair is kept."""
        slug = "".join(letter if letter.isalnum() else "_" for letter in method)
        return self.folder / "pictures" / slug / f"{pair}.png"

    def picture(self, method: str, pair: str) -> np.ndarray:
        """`(height, width, 3)` uint8: an edit that was made."""
        return np.array(open_picture(self.picture_path(method, pair)).convert("RGB"))

    def _edits(self, pair: EvaluationPair, methods: Sequence[Method]) -> Iterator[Record]:
        session: DragSession | None = None
        for method in methods:
            if method.motion is None:
                picture, figures = pair.source, _of_no_edit(pair)
                told: dict[str, Any] = {}
            else:
                if session is None:
                    source = Image.fromarray(pair.source)
                    session = self.pipe.open_session(source, preset=self.preset, **self.settings)
                picture, figures, told = self._edit(session, pair, method)
            path = self.picture_path(method.name, pair.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as out:
                Image.fromarray(picture).save(out, "PNG")
            yield Record(
                pair.name, method.name, self.mark(method, pair), {**figures, **self.metrics(picture, pair)}, told
            )

    def _edit(
        self, session: DragSession, pair: EvaluationPair, method: Method
    ) -> tuple[np.ndarray, dict[str, float], dict[str, Any]]:
        assert method.motion is not None
        began, self._passes = time.perf_counter(), 0
        mask = Image.fromarray(np.uint8(255) * pair.mask)
        for _ in session.drag(pair.handles, pair.targets, mask, motion=method.motion(pair)):
            pass
        result, passes, seconds = session.history[-1], self._passes, time.perf_counter() - began
        image = session.image(result)
        content = session.content(result, image)
        session.undo()
        figures = {
            "distance": float(content.distances[content.found].mean()) if content.found.any() else float("nan"),
            "asked": float(content.asked.mean()),
            "lost": float((~content.found).float().mean()),
            "iterations": float(len(result.iterations)),
            "passes": float(passes),
        }
        told = {
            "stop_reason": result.stop_reason,
            "wrong_way": sum(each.wrong_way_count for each in result.iterations),
            "seconds": round(seconds, 2),
            "trajectory": result.trajectory.tolist(),
            "content": content.record(),
        }
        picture = (255 * image[0].permute(1, 2, 0)).round().clamp(0, 255).byte().cpu().numpy()
        return picture, figures, told


def _of_no_edit(pair: EvaluationPair) -> dict[str, float]:
    """Where nothing moved, the way that was asked for is left."""
    asked = float(np.linalg.norm(pair.targets - pair.handles, axis=1).mean())
    return {"distance": asked, "asked": asked, "lost": 0.0, "iterations": 0.0, "passes": 0.0}
