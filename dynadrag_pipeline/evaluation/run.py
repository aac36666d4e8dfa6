"""A run: every pair edited by every method, measured, and written down; resumable, and shared by processes."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.picture_files import open_picture
from motion_predictor.data.dataset_folder import build_processes

from ..content import ContentLocations
from ..drag_instruction import DragInstruction
from ..drag_result import DragResult
from ..fit_key import weights_content
from ..pipeline_dynadrag import DynaDragPipeline
from ..session import ONCE_PER_PICTURE, DragSession
from ..session_file import models_content
from ..settings import SettingsInForce
from . import judge as judge_room
from . import mean_distance as distance_room
from . import methods as methods_room
from . import metrics as metrics_room
from . import pairs as pairs_room
from . import perceptual as perceptual_room
from .code_version import code_version
from .method_names import TRUE_MOTION, back_of, folder_name
from .methods import Method, load_predictor, source_of_motion
from .metrics import Metrics
from .pairs import EvaluationPair, with_misplaced_handle
from .records import Record, RecordFile, read_records

OF_THE_PICTURE = tuple(name for name in ONCE_PER_PICTURE if name not in ("restore_source", "locate_content"))
"""Settings of what a picture costs once; its own pixels are taken back only when the picture is made."""

EDITS_FROM = (methods_room, pairs_room, sys.modules[__name__])
"""The rooms of the evaluation that make pictures, beside the engine."""

FIGURES_FROM = (metrics_room, perceptual_room, judge_room, distance_room)
"""Those that make figures of pictures."""

KINDS = ("records", "figures")
"""Files of a run: of edits, and of what their pictures were measured by."""

DRAG_BACK = "drag_back"
"""The figure of an edit forth and back."""

LEAST_WORK: dict[str, Any] = {"identity_lora_steps": 0, "num_inference_steps": 1, "inversion_strength": 1.0}
"""Settings of a session in which content is looked for and nothing is edited."""


class EvaluationRun:
    """Edits of pairs by methods, in a folder: pictures, and a line of JSON for each.

    A picture's identity LoRA is fitted once for all methods, and its inversion and reference are made once for all
    whose settings agree on them. What is done already is not done again; a run that was killed ends with the figures
    of one that was not. What pictures are measured by is kept beside, so that a metric can be added later.

    Args:
        pipe ([`DynaDragPipeline`]): edits.
        folder (`Path`): of the run.
        metrics ([`Metrics`]): what pictures are measured by.
        settings (`dict`, *optional*): options of all edits, over those that the pipeline recommends.
        preset (`str`, *optional*): options by name, in the place of those.
        drag_back (`Callable`, *optional*):
            edit what came out back again, from targets to handles, and measure it: `(picture, source) -> float`, of
            `(height, width, 3)` uint8.

    Example:
        >>> run = EvaluationRun(pipe, Path("runs/few"), Metrics(picture_metrics()))  # doctest: +SKIP
        >>> records = run(load_pairs(Path("pairs"), 10), [METHODS["no edit"], METHODS["straight"]])  # doctest: +SKIP
        >>> print(format_tables(records, run.metrics))  # doctest: +SKIP
    """

    def __init__(
        self,
        pipe: DynaDragPipeline,
        folder: Path,
        metrics: Metrics,
        settings: dict[str, Any] | None = None,
        preset: str | None = None,
        drag_back: Callable[[np.ndarray, np.ndarray], float] | None = None,
    ) -> None:
        self.pipe = pipe
        self.folder = folder
        self.metrics = metrics
        self.settings = settings or {}
        self.preset = preset
        self.drag_back = drag_back
        text = [] if pipe.text_encoder is None else weights_content(pipe.text_encoder)  # prompts are a benchmark's
        self._models = [models_content(pipe), hashlib.sha256(repr(text).encode()).hexdigest()]
        self._predictors: dict[str, Any] = {}
        self._predictor_contents: dict[str, str] = {}

    def prepare(self, pairs: Sequence[EvaluationPair], methods: Sequence[Method]) -> None:
        """Load the motion predictors that methods ask for, and check what they edit: before any work.

        Args:
            pairs (`Sequence` of [`EvaluationPair`]): that are to be edited.
            methods (`Sequence` of [`Method`]): that are to be run.

        Raises:
            ValueError: if one can't be run, naming it.
        """
        for pair in pairs:
            try:
                DragInstruction.from_user(pair.handles, pair.targets, pair.mask, pair.source.shape[:2])
            except ValueError as error:
                raise ValueError(f"Pair {pair.name!r}: {error}") from error
        unknown = next((pair.name for pair in pairs if not pair.has_flow), None)
        for method in methods:
            try:
                self.in_force(method)
                self._load_predictor(method)
                if method.motion == TRUE_MOTION and unknown is not None:
                    raise ValueError(f"pair {unknown!r} has no true motion in a `flow.npz`: leave the method out.")
            except ValueError as error:
                raise ValueError(f"Method {method.name!r}: {error}") from error

    def in_force(self, method: Method) -> SettingsInForce:
        """The settings of a method's edits: its own options go before those of the run.

        Args:
            method ([`Method`]): that edits.

        Returns:
            [`SettingsInForce`]: with where each comes from.

        Raises:
            ValueError: if an option can't be had.
        """
        preset = method.preset or self.preset
        changes = {**method.options, "locate_content": True}
        return self.pipe.settings_in_force(changes, settings=self.settings, preset=preset)

    def mark(self, method: Method, pair: EvaluationPair) -> str:
        """Hash of all that an edit depends on: picture, points, settings, weights and code.

        Args:
            method ([`Method`]): that edits; its motion predictor counts once [`~EvaluationRun.prepare`] has loaded it.
            pair ([`EvaluationPair`]): as it is edited, which is back from what came out for a way back.

        Returns:
            `str`: 16 hexadecimal digits.
        """
        values = vars(self.in_force(method).settings)
        parts: list[Any] = [method.name, pair.name, pair.prompt, method.said(), values, self._models]
        parts += [code_version(*EDITS_FROM), self.pipe._execution_device.type]
        if method.asks_predictor:
            parts.append(self._predictor_contents.get(method.motion_predictor))
        arrays = [pair.source, pair.mask, pair.handles, pair.targets]
        if method.motion == TRUE_MOTION or method.misplaced_handle:
            arrays.append(pair.flow)
        return _hash(parts, arrays)

    def _load_predictor(self, method: Method) -> None:
        name = method.motion_predictor
        if not method.asks_predictor:
            return
        if name not in self._predictors:
            unet = self.pipe.unet
            predictor = load_predictor(name, self.pipe.motion_predictor, self.pipe._execution_device, unet.dtype)
            self._predictors[name] = predictor
            if predictor is not None:
                content = repr([sorted(predictor.config.items()), weights_content(predictor)])
                self._predictor_contents[name] = hashlib.sha256(content.encode()).hexdigest()
        if method.motion == "predicted" and self._predictors[name] is None:
            raise ValueError(
                "`motion` must be another than 'predicted', or `motion_predictor` 'embedded' or a folder: the model "
                "has no motion predictor."
            )

    def __call__(self, pairs: Sequence[EvaluationPair], methods: Sequence[Method]) -> list[Record]:
        """Make the edits that are not there yet, shared by all processes of `accelerate`.

        Args:
            pairs (`Sequence` of [`EvaluationPair`]): to edit.
            methods (`Sequence` of [`Method`]): how.

        Returns:
            `list` of [`Record`]: of all pairs and methods, in their order, in every process.
        """
        self.prepare(pairs, methods)
        state = build_processes()
        file, figures = (RecordFile(self.folder / f"{kind}.{state.process_index:03d}.jsonl") for kind in KINDS)
        done, measured = self._read()
        left = [pair for pair in pairs if not self._is_whole(pair, methods, done, measured)]
        state.wait_for_everyone()  # nobody writes before all have read: they share out the same pairs
        mine = left[state.process_index :: state.num_processes]
        for pair in tqdm(mine, desc="Evaluating", unit="pair", disable=not state.is_main_process):
            for made in (methods, self._backwards(methods)):
                missing = [each for each in made if not self._is_done(done, each, pair)]
                for record in self._edits(pair, missing):
                    file.append(record)
                    done[record.pair, record.method, record.mark] = record
            for method in methods:
                for record in self._measures(pair, method, measured):
                    figures.append(record)
        state.wait_for_everyone()
        done, measured = self._read()
        return [self._whole(pair, method, done, measured) for pair in pairs for method in methods]

    def _read(self) -> tuple[dict[tuple[str, str, str], Record], dict[tuple[str, str, str], Record]]:
        """What there is of each of `KINDS`; edits count beside their pictures: another run may put its own there."""
        edits, figures = KINDS
        return read_records(self.folder, edits, self._has_its_picture), read_records(self.folder, figures)

    def _has_its_picture(self, record: Record) -> bool:
        path = self.picture_path(record.method, record.pair)
        return path.is_file() and record.told.get("picture") == _digest(path)

    def _is_whole(
        self,
        pair: EvaluationPair,
        methods: Sequence[Method],
        done: Mapping[tuple[str, str, str], Record],
        measured: Mapping[tuple[str, str, str], Record],
    ) -> bool:
        """Whether nothing of a pair is left to do; the ways back come last, since they begin with the ways there."""
        if not all(self._is_done(done, each, pair) for each in (*methods, *self._backwards(methods))):
            return False
        marks = {each.name: self._measure_marks(pair, each).values() for each in methods}
        return all((pair.name, name, mark) in measured for name, own in marks.items() for mark in own)

    def _backwards(self, methods: Sequence[Method]) -> list[Method]:
        """The same methods, for what each came to: none knows the true motion back."""
        if self.drag_back is None:
            return []
        return [replace(each, name=back_of(each.name), back=True) for each in methods if each.motion != TRUE_MOTION]

    def _measures(
        self, pair: EvaluationPair, method: Method, measured: Mapping[tuple[str, str, str], Record]
    ) -> Iterator[Record]:
        """What pictures are measured by that is not measured yet, a record for each metric."""
        for name, mark in self._measure_marks(pair, method).items():
            if (pair.name, method.name, mark) in measured:
                continue
            if name == DRAG_BACK:
                assert self.drag_back is not None, "it is among the wanted"
                value = self.drag_back(self.picture(back_of(method.name), pair.name), pair.source)
            else:
                value = self.metrics.measure(name, self.picture(method.name, pair.name), pair)
            yield Record(pair.name, method.name, mark, {name: value}, {})

    def _measure_marks(self, pair: EvaluationPair, method: Method) -> dict[str, str]:
        """By name of a metric, the hash of all that its value depends on."""
        marks = {}
        paths = {name: self.picture_path(method.name, pair.name) for name in self._suitable(pair)}
        if self.drag_back is not None and method.motion != TRUE_MOTION:
            paths[DRAG_BACK] = self.picture_path(back_of(method.name), pair.name)
        arrays = [pair.source, pair.mask, pair.handles, pair.targets, *([] if pair.target is None else [pair.target])]
        contents = {path: _digest(path) for path in set(paths.values())}
        for name, path in paths.items():
            said = getattr(self.drag_back, "protocol", "") if name == DRAG_BACK else self.metrics.protocol(name)
            content = self._models if name.startswith("md_") else ""
            marks[name] = _hash([name, said, content, contents[path], code_version(*FIGURES_FROM)], arrays)
        return marks

    def _suitable(self, pair: EvaluationPair) -> list[str]:
        """Metrics that a pair can be measured by."""
        had = self.metrics.had
        return [name for name, metric in had.items() if pair.target is not None or not metric.needs_target]

    def _whole(
        self,
        pair: EvaluationPair,
        method: Method,
        done: Mapping[tuple[str, str, str], Record],
        measured: Mapping[tuple[str, str, str], Record],
    ) -> Record:
        """The record of an edit with all that its picture was measured by."""
        record = done[pair.name, method.name, self.mark(method, pair)]
        figures = dict(record.figures)
        for mark in self._measure_marks(pair, method).values():
            figures |= measured[pair.name, method.name, mark].figures
        return replace(record, figures=figures)

    def picture_path(self, method: str, pair: str) -> Path:
        """Where the edit of a pair is kept.

        Args:
            method (`str`): its name, or that of its way back (`back_of`).
            pair (`str`): its name.

        Returns:
            `Path`: of a PNG, whether it is there or not.
        """
        return self.folder / "pictures" / folder_name(method) / f"{pair}.png"

    def picture(self, method: str, pair: str) -> np.ndarray:
        """An edit that was made.

        Args:
            method, pair (`str`): as of [`~EvaluationRun.picture_path`].

        Returns:
            `np.ndarray` of shape `(height, width, 3)`: uint8.

        Raises:
            FileNotFoundError: if it was not made.
        """
        return np.array(open_picture(self.picture_path(method, pair)).convert("RGB"))

    def _is_done(self, done: Mapping[tuple[str, str, str], Record], method: Method, pair: EvaluationPair) -> bool:
        return (pair.name, method.name, self.mark(method, self._instructed(method, pair))) in done

    def _instructed(self, method: Method, pair: EvaluationPair) -> EvaluationPair:
        """The pair as a method is to edit it: back from what came out, or as it is."""
        if not method.back:
            return pair
        source = self.picture(method.name.removesuffix(back_of("")), pair.name)
        return replace(pair, source=source, target=None, handles=pair.targets, targets=pair.handles)

    def _edits(self, pair: EvaluationPair, methods: Sequence[Method]) -> Iterator[Record]:
        """Those that share a session one after the other."""
        sharing: dict[str, list[Method]] = {}
        for method in methods:
            sharing.setdefault(self._session_key(method), []).append(method)
        for together in sharing.values():
            session: DragSession | None = None
            for method in together:
                asked = self._instructed(method, pair)
                if method.picture is not None:
                    picture = method.picture(asked)
                    figures, told = self._of_picture(asked, picture)
                else:
                    session = self._opened(asked, method) if session is None or method.back else session
                    picture, figures, told = self._edit(session, asked, method)
                yield self._kept(asked, method, picture, figures, told)

    def _session_key(self, method: Method) -> str:
        if method.picture is not None:
            return ""
        settings = self.in_force(method).settings
        return repr([getattr(settings, name) for name in OF_THE_PICTURE])

    def _opened(self, pair: EvaluationPair, method: Method) -> DragSession:
        """A session for a pair's source; the pipeline keeps the identity LoRA for the next one of this picture."""
        source = Image.fromarray(pair.source)
        return self.pipe.open_session(source, prompt=pair.prompt, settings=self.in_force(method))

    def _kept(
        self,
        pair: EvaluationPair,
        method: Method,
        picture: np.ndarray,
        figures: dict[str, float],
        told: dict[str, Any],
    ) -> Record:
        """The picture on the disk, and its record, which is not there yet."""
        path = self.picture_path(method.name, pair.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as out:
            Image.fromarray(picture).save(out, "PNG")
        return Record(pair.name, method.name, self.mark(method, pair), figures, {**told, "picture": _digest(path)})

    def _of_picture(self, pair: EvaluationPair, picture: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
        """Where content is in a picture that no drag made: in that of the source, where it was."""
        figures = {"iterations": 0.0, "passes": 0.0}
        if (picture == pair.source).all():
            asked = float(np.linalg.norm(pair.targets - pair.handles, axis=1).mean())
            points = float(len(pair.handles))
            return {"distance": asked, "asked": asked, "lost": 0.0, "points": points, **figures}, {}
        session = self.pipe.open_session(
            Image.fromarray(pair.source),
            prompt=pair.prompt,
            settings=self.settings,
            preset=self.preset,
            **LEAST_WORK,
        )
        handles, targets = torch.from_numpy(pair.handles), torch.from_numpy(pair.targets)
        nothing_made = DragResult(session.original, handles[None], targets, [], "reached", "")
        shown = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        content = session.content(nothing_made, shown)
        return {**_of_content(content, len(handles)), **figures}, {"content": content.record()}

    def _edit(
        self, session: DragSession, pair: EvaluationPair, method: Method
    ) -> tuple[np.ndarray, dict[str, float], dict[str, Any]]:
        settings = self.in_force(method).settings
        changes = {name: value for name, value in vars(settings).items() if name not in ONCE_PER_PICTURE}
        motion = source_of_motion(method, pair, self._predictors.get(method.motion_predictor))
        began = time.perf_counter()
        mask = Image.fromarray(np.uint8(255) * pair.mask)
        given = with_misplaced_handle(pair) if method.misplaced_handle and pair.has_flow else pair
        for _ in session.drag(given.handles, given.targets, mask, motion=motion, **changes):
            pass
        result, passes, seconds = session.history[-1], session.drag_engine.passes, time.perf_counter() - began
        image = session.image(result, restore=settings.restore_source)
        content = session.content(result, image)
        session.undo()
        figures = {
            **_of_content(content, len(pair.handles)),
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


def _of_content(content: ContentLocations, points: int) -> dict[str, float]:
    """Means over the points of a pair, those that were added apart; the distance over those that were found."""
    found = content.found[:points]
    return {
        "distance": float(content.distances[:points][found].mean()) if found.any() else float("nan"),
        "asked": float(content.asked[:points].mean()),
        "lost": float((~found).float().mean()),
        "points": float(points),
    }


def _hash(parts: list[Any], arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
