"""Training samples: handles, targets and labels, drawn anew from a record each time (DynaDrag, Sec. 3.2.1).

The paper's labels are the motion to the very next frame. The direction of so short a motion says little about where
the content is 15 to 55 frames later, so labels over a longer horizon, and a filter on their direction, are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import max_pool2d
from torch.utils.data import Dataset

from ..common.checks import check_number, check_whole_number, got
from .motion_record import HORIZON_STRIDE, MotionRecord
from .portrait_records import LEAST_CHANGE
from .shards import MotionShards
from .tilted_window import TiltedWindow
from .unknown_motion import as_near_by

MAX_HANDLES = 7
FEW_HANDLES = 2
MOST_PINS = 3
MOST_OF_A_PIN = 0.03  # of the longest displacement: what moves by less may be pinned
MOST_FRAMES = 10_000  # from a start frame to an end frame
MAX_ZOOM = 1.6
SHORTEST_DISPLACEMENT = 1.0  # pixels of the record: below, a direction means nothing
MAX_TRIES = 200


@dataclass
class SampleSettings:
    """How samples are drawn from records.

    Attributes:
        first_end_frame (`int`, *optional*, defaults to 15): the end frame lies at least so many frames after the start
            (the paper's 15).
        last_end_frame (`int`, *optional*, defaults to 55): and at most so many (the paper's 55).
        horizon (`int`, *optional*, defaults to 0): a label is the motion over `ceil(n / horizon)` frames, where the
            end frame is n frames away; 0 for one frame, as in the paper.
        min_cosine (`float`, *optional*, defaults to -1.0): handles whose step and displacement have a smaller cosine
            are not drawn; -1 for all.
        remove_background (`bool`, *optional*, defaults to `False`): subtract the median motion of the background, that
            of the camera.
        augment (`bool`, *optional*, defaults to `False`): mirror, enlarge, and vary brightness, contrast and colour.
        framing (`bool`, *optional*, defaults to `False`): see the record small or large, tilted by up to 20 degrees,
            and anywhere: content that fills half of a record fills a fifth to three quarters of a sample.
        total (`bool`, *optional*, defaults to `False`): the label of the whole way besides that of a step; end frames
            are those that the record keeps such motion for.
        masks (`float`, *optional*, defaults to 0.0): share of the samples that come with a mask of what moves; with
            others, everything may change.
        far_handles (`float`, *optional*, defaults to 0.0): handles go at least so large a share of the longest
            displacement of all candidates.
        few_handles (`float`, *optional*, defaults to 0.0): share of the samples that have one handle or two only.
        curriculum (`int`, *optional*, defaults to 0): over so many samples this share rises from nought.
        pins (`float`, *optional*, defaults to 0.0): share of the samples with static points besides, which are put
            where nothing moves.
    """

    first_end_frame: int = 15
    last_end_frame: int = 55
    horizon: int = 0
    min_cosine: float = -1.0
    remove_background: bool = False
    augment: bool = False
    framing: bool = False
    total: bool = False
    masks: float = 0.0
    far_handles: float = 0.0
    few_handles: float = 0.0
    curriculum: int = 0
    pins: float = 0.0

    def __post_init__(self) -> None:
        for name in ("masks", "far_handles", "few_handles", "pins"):
            check_number(name, getattr(self, name), least=0, most=1)
        check_whole_number("curriculum", self.curriculum, least=0, most=10**12)
        for name in ("masks", "pins"):
            if getattr(self, name) and not self.total:
                raise ValueError(
                    f"`{name}` must be 0 unless `total`, since the whole way says what moves, got "
                    f"{getattr(self, name)}."
                )
        check_whole_number("last_end_frame", self.last_end_frame, least=1, most=MOST_FRAMES)
        check_whole_number("first_end_frame", self.first_end_frame, least=1, most=self.last_end_frame)
        check_whole_number("horizon", self.horizon, least=0, most=MOST_FRAMES)
        check_number("min_cosine", self.min_cosine, least=-1, most=1)


@dataclass
class MotionSample:
    """What the network sees, and what it should answer; or a batch of these, with a leading dimension `B`.

    Attributes:
        image (`torch.Tensor` of shape `(3, height, width)`): float32 in [0, 1].
        handles (`torch.Tensor` of shape `(7, 2)`): float32, in pixels of `image`.
        targets (`torch.Tensor` of shape `(7, 2)`): float32, in pixels of `image`; may lie outside.
        valid (`torch.Tensor` of shape `(7,)`): bool, False for padding.
        steps (`torch.Tensor` of shape `(7, 2)`): float32, the true step of each handle: the label at the handles.
        label (`torch.Tensor` of shape `(2, height, width)`): float32, the true motion of all pixels in the time of a
            step; NaN where it is not known.
        frames (`torch.Tensor`): int64, how many frames away the end frame is.
        total (`torch.Tensor` of shape `(2, height, width)`): float32, the true motion of all pixels until the end
            frame; NaN where it is not known, or not asked for.
        mask (`torch.Tensor` of shape `(1, height, width)`): float32, 1 where the picture may change, else 0.
    """

    image: torch.Tensor
    handles: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    steps: torch.Tensor
    label: torch.Tensor
    frames: torch.Tensor
    total: torch.Tensor
    mask: torch.Tensor

    @staticmethod
    def stack(samples: Sequence[MotionSample]) -> MotionSample:
        """A batch of samples of one size.

        Args:
            samples (`Sequence[MotionSample]`): with pictures of one size.

        Returns:
            `MotionSample`: a batch.
        """
        names = [entry.name for entry in fields(MotionSample)]
        return MotionSample(**{name: torch.stack([getattr(sample, name) for sample in samples]) for name in names})

    def to(self, device: torch.device | str) -> MotionSample:
        """The same on another device.

        Args:
            device (`torch.device` or `str`): to copy to.

        Returns:
            `MotionSample`: the copy.
        """
        return MotionSample(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})

    def pin_memory(self) -> MotionSample:
        """The same in memory that a GPU can read; called by torch's loader."""
        return MotionSample(**{name: value.pin_memory() for name, value in vars(self).items()})


@dataclass(frozen=True)
class Window:
    """A part of a frame and the size that it is seen at; sides are the edges of pixels, from 0 to the frame's side."""

    left: float
    top: float
    width: float
    height: float
    to_width: int
    to_height: int

    @property
    def scale(self) -> np.ndarray:
        return np.array([self.to_width / self.width, self.to_height / self.height], dtype=np.float32)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points `[..., 2]` of the frame in pixels of the window."""
        corner = np.array([self.left, self.top], dtype=np.float32)
        return (points + 0.5 - corner) * self.scale - 0.5

    def vectors(self, motion: np.ndarray) -> np.ndarray:
        """Motion `[..., 2]` of the frame in pixels of the window."""
        return motion * self.scale

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether points `[..., 2]` of the frame lie on the window's pixels."""
        seen = self.points(points)
        inside = (seen >= 0) & (seen <= (self.to_width - 1, self.to_height - 1))
        return np.asarray(inside.all(axis=-1))

    def picture(self, frame: np.ndarray) -> np.ndarray:
        """A frame `[H, W, 3]` uint8 as seen through the window, smoothed as far as it is made smaller."""
        return np.asarray(self._resize(Image.fromarray(frame), 1))

    def field(self, motion: np.ndarray, stride: int) -> np.ndarray:
        """Motion `[H / stride, W / stride, 2]` as seen through the window, in its pixels; NaN near what is NaN."""
        known = np.isfinite(motion).all(axis=-1)
        filled = np.where(known[..., None], motion, 0).astype(np.float32)
        seen = [self._resize(Image.fromarray(np.ascontiguousarray(filled[..., axis])), stride) for axis in (0, 1)]
        sure = np.asarray(self._resize(Image.fromarray(known.astype(np.float32)), stride)) > 0.999
        together = np.stack([np.asarray(part) for part in seen], axis=-1)
        return np.where(sure[..., None], self.vectors(together), np.nan)

    def _resize(self, image: Image.Image, stride: int) -> Image.Image:
        right, bottom = self.left + self.width, self.top + self.height
        box = (
            self.left / stride,
            self.top / stride,
            min(right / stride, image.width),  # rounding may carry a window over the edge
            min(bottom / stride, image.height),
        )
        return image.resize((self.to_width, self.to_height), Image.Resampling.BILINEAR, box=box)


def draw_sample(
    record: MotionRecord,
    settings: SampleSettings,
    random: np.random.Generator,
    size: int | None = None,
    handles: int | None = None,
) -> MotionSample | None:
    """Draw an end frame, 1 to 7 handles that are still to be seen in it, and the label of the step towards it.

    The candidates of a record were drawn with a probability proportional to their motion, so handles are drawn from
    them with equal chances.

    Args:
        record (`MotionRecord`): to draw from.
        settings (`SampleSettings`): how to draw.
        random (`np.random.Generator`): the only source of chance.
        size (`int`, *optional*): the side of a square window that is seen, in the network's pixels. None: the whole
            frame as it is.
        handles (`int`, *optional*): how many, as far as there are candidates. None: drawn.

    Returns:
        `MotionSample`, or None if no candidate fits.
    """
    frames = _draw_end_frame(record, settings, random)
    if frames is None:
        return None
    step_frames = math.ceil(frames / settings.horizon) if settings.horizon else 1
    if step_frames > len(record.horizon_flows):
        raise ValueError(
            f"`horizon` must be larger, got {settings.horizon}: the record {record.key} has no labels over "
            f"{step_frames} frames, but up to {len(record.horizon_flows)}. Or build the dataset anew."
        )

    window = _draw_window(record.frame.shape[1], record.frame.shape[0], settings, random, size)
    camera = record.background if settings.remove_background else np.zeros_like(record.background)
    displacements = record.tracks[:, frames - 1] - camera[frames - 1]
    steps = record.tracks[:, step_frames - 1] - camera[step_frames - 1]
    fit = np.isfinite(displacements).all(axis=1) & np.isfinite(steps).all(axis=1) & window.contains(record.points)
    fit &= _cosine_at_least(settings.min_cosine, steps, displacements)
    candidates = _far_enough(np.flatnonzero(fit), displacements, settings.far_handles)
    if len(candidates) == 0:
        return None
    number = _draw_number(settings, random) if handles is None else handles
    chosen = random.choice(candidates, min(number, len(candidates)), replace=False)

    motion, stride = (record.flow, 1) if step_frames == 1 else (record.horizon_flows[step_frames - 1], HORIZON_STRIDE)
    label = window.field(motion - camera[step_frames - 1], stride)
    total = np.full_like(label, np.nan)
    if settings.total:
        end = record.end_flows[record.end_frames.tolist().index(frames)]
        total = window.field(end - camera[frames - 1], HORIZON_STRIDE)
    places = window.points(record.points[chosen])
    sample = _Arrays(
        image=window.picture(record.frame).astype(np.float32) / 255,
        label=label,
        total=total,
        mask=_draw_mask(total, settings, random),
        handles=places,
        targets=places + window.vectors(displacements[chosen]),
        steps=window.vectors(steps[chosen]),
    )
    if settings.pins and random.random() < settings.pins:
        sample = _with_pins(sample, random)
    if settings.augment:
        sample = _augment(sample, random)
    return _to_sample(sample, frames)


def _draw_end_frame(record: MotionRecord, settings: SampleSettings, random: np.random.Generator) -> int | None:
    last = min(settings.last_end_frame, record.tracks.shape[1])
    if not settings.total:
        return int(random.integers(settings.first_end_frame, last + 1)) if last >= settings.first_end_frame else None
    ends = record.end_frames[(record.end_frames >= settings.first_end_frame) & (record.end_frames <= last)]
    return int(random.choice(ends)) if len(ends) else None


def _draw_number(settings: SampleSettings, random: np.random.Generator) -> int:
    if settings.few_handles and random.random() < settings.few_handles:
        return int(random.integers(1, FEW_HANDLES + 1))
    return int(random.integers(1, MAX_HANDLES + 1))


def _far_enough(candidates: np.ndarray, displacements: np.ndarray, share: float) -> np.ndarray:
    """The candidates whose displacement is at least a share of the longest."""
    if share == 0 or len(candidates) == 0:
        return candidates
    length = np.linalg.norm(displacements[candidates], axis=1)
    return candidates[length >= share * length.max()]


def _draw_mask(total: np.ndarray, settings: SampleSettings, random: np.random.Generator) -> np.ndarray:
    """Where an edit to the end frame may change the picture, `[H, W]` float32, more or less amply; or everywhere.

    Pixels whose motion is not known are as those near by, and as what comes to them.
    """
    height, width = total.shape[:2]
    length = np.nan_to_num(np.linalg.norm(total, axis=-1))
    if not settings.masks or random.random() >= settings.masks or not length.any():
        return np.ones((height, width), dtype=np.float32)
    moves = length > LEAST_CHANGE * length.max()
    y, x = np.nonzero(moves)
    ends = np.rint(np.stack([x, y], axis=-1) + total[moves]).astype(int)
    changes = as_near_by(moves, np.isfinite(total).all(axis=-1))
    inside = ((ends >= 0) & (ends < (width, height))).all(axis=-1)
    changes[ends[inside, 1], ends[inside, 0]] = True
    side = min(height, width)
    rim = max(side // 32, 1) if not settings.augment else int(random.integers(1, max(side // 8, 1) + 1))
    widened = max_pool2d(torch.from_numpy(changes)[None].float(), 2 * rim + 1, stride=1, padding=rim)
    return widened[0].numpy()


def _draw_window(
    width: int, height: int, settings: SampleSettings, random: np.random.Generator, size: int | None
) -> Window | TiltedWindow:
    if size is None:
        return Window(0, 0, width, height, width, height)
    if settings.framing:
        return TiltedWindow.draw(width, height, random, size)
    zoom = 1 + (MAX_ZOOM - 1) * random.random() if settings.augment and random.random() < 0.5 else 1.0
    side = min(width, height) / zoom
    return Window((width - side) * random.random(), (height - side) * random.random(), side, side, size, size)


def _with_pins(sample: _Arrays, random: np.random.Generator) -> _Arrays:
    """The same with one to three static points, as far as there is room, where hardly anything moves."""
    length = np.linalg.norm(sample.total, axis=-1)
    still = np.argwhere(length < MOST_OF_A_PIN * np.nanmax(length, initial=0.0))
    number = min(int(random.integers(1, MOST_PINS + 1)), MAX_HANDLES - len(sample.handles), len(still))
    if number <= 0:
        return sample
    pins = still[random.choice(len(still), number, replace=False)][:, ::-1].astype(np.float32)
    return replace(
        sample,
        handles=np.concatenate([sample.handles, pins]),
        targets=np.concatenate([sample.targets, pins]),
        steps=np.concatenate([sample.steps, np.zeros_like(pins)]),
    )


def _cosine_at_least(limit: float, steps: np.ndarray, displacements: np.ndarray) -> np.ndarray:
    """Whether steps lead towards their targets; where there is hardly any displacement, no direction is asked for."""
    length = np.linalg.norm(displacements, axis=1)
    dot = (steps * displacements).sum(axis=1)
    return (dot >= limit * np.linalg.norm(steps, axis=1) * length) | (length < SHORTEST_DISPLACEMENT)


@dataclass
class _Arrays:
    image: np.ndarray  # [H, W, 3]
    label: np.ndarray  # [H, W, 2]
    total: np.ndarray  # [H, W, 2]
    mask: np.ndarray  # [H, W]
    handles: np.ndarray  # [n, 2]
    targets: np.ndarray
    steps: np.ndarray


def _augment(sample: _Arrays, random: np.random.Generator) -> _Arrays:
    image = sample.image
    if random.random() < 0.2:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    contrast, brightness = random.uniform(0.75, 1.25), random.uniform(-0.12, 0.12)
    tint = random.uniform(-0.04, 0.04, 3)
    image = np.clip((image - 0.5) * contrast + 0.5 + brightness + tint, 0, 1).astype(np.float32)
    if random.random() < 0.5:
        return replace(sample, image=image)
    mirror = np.array([-1, 1], dtype=np.float32)
    right = np.array([image.shape[1] - 1, 0], dtype=np.float32)
    return _Arrays(
        image=image[:, ::-1],
        label=sample.label[:, ::-1] * mirror,
        total=sample.total[:, ::-1] * mirror,
        mask=sample.mask[:, ::-1],
        handles=right + sample.handles * mirror,
        targets=right + sample.targets * mirror,
        steps=sample.steps * mirror,
    )


def _to_sample(sample: _Arrays, frames: int) -> MotionSample:
    def padded(points: np.ndarray) -> torch.Tensor:
        full = torch.zeros(MAX_HANDLES, 2)
        full[: len(points)] = torch.from_numpy(points)
        return full

    def channels_first(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))

    return MotionSample(
        image=channels_first(sample.image),
        handles=padded(sample.handles),
        targets=padded(sample.targets),
        valid=torch.arange(MAX_HANDLES) < len(sample.handles),
        steps=padded(sample.steps),
        label=channels_first(sample.label),
        frames=torch.tensor(frames),
        total=channels_first(sample.total),
        mask=channels_first(sample.mask[..., None]),
    )


class MotionSamples(Dataset[MotionSample]):
    """An endless list of samples: the n-th is the same whenever and wherever it is asked for.

    So a run that is stopped goes on with the very samples that it would have seen, and several processes share them.

    Args:
        sources (`Sequence[MotionShards]`): records to draw from.
        weights (`Sequence[float]`): how often each source is drawn from, in proportion; positive.
        settings (`Sequence[SampleSettings]`): how samples are drawn from each source.
        size (`int`): side of the square window that is seen, in pixels.
        seed (`int`, *optional*, defaults to 0): of everything random.
    """

    def __init__(
        self,
        sources: Sequence[MotionShards],
        weights: Sequence[float],
        settings: Sequence[SampleSettings],
        size: int,
        seed: int = 0,
    ):
        if len(settings) != len(sources):
            raise ValueError(f"`settings` must be {len(sources)}, one for each source, got {len(settings)}.")
        if len(weights) != len(sources) or not all(weight > 0 for weight in weights):
            raise ValueError(f"`weights` must be {len(sources)} positive numbers, got {got(list(weights))}.")
        self.sources = list(sources)
        self.shares = np.array(weights, dtype=np.float64) / sum(weights)
        self.settings = list(settings)
        self.size = size
        self.seed = seed

    def __getitem__(self, index: int) -> MotionSample:
        random = np.random.default_rng((self.seed, index))
        chosen = int(random.choice(len(self.sources), p=self.shares))
        source, settings = self.sources[chosen], _in_curriculum(self.settings[chosen], index)
        for _ in range(MAX_TRIES):
            record = source[int(random.integers(len(source)))]
            sample = draw_sample(record, settings, random, self.size)
            if sample is not None:
                return sample
        raise ValueError(
            f"no sample in {MAX_TRIES} records of `{source.folder}`: are its videos shorter than `first_end_frame`, "
            f"{settings.first_end_frame} frames, or is `min_cosine`, {settings.min_cosine}, too strict?"
        )


def _in_curriculum(settings: SampleSettings, index: int) -> SampleSettings:
    """Those of the n-th sample: early ones have fewer of few handles."""
    if not settings.curriculum:
        return settings
    return replace(settings, few_handles=settings.few_handles * min(index / settings.curriculum, 1.0))
