"""Pictures of an edit: points, trajectories, flow, contact sheet and GIF, with Pillow and numpy alone.

Points are (x, y), x to the right and y down, in pixels of the picture that they are drawn on; whole numbers are pixel
centres. Nothing here changes the picture that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.points import Points

from .picture import Picture, to_picture_tensor

if TYPE_CHECKING:
    from .pipeline_output import DragIteration, DynaDragPipelineOutput

Trajectories = Sequence[Points] | np.ndarray | torch.Tensor
Colour = tuple[int, int, int]

HANDLE_COLOUR: Colour = (230, 45, 55)
TARGET_COLOUR: Colour = (35, 120, 250)
ARROW_COLOUR: Colour = (255, 255, 255)
PATH_COLOUR: Colour = (255, 214, 10)
PIN_COLOUR: Colour = (40, 170, 80)
OUTLINE_COLOUR: Colour = (0, 0, 0)

_WHEEL_POSITIONS = (0, 15, 21, 25, 36, 49, 55)
_WHEEL_COLOURS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0))
_SHEET_BACKGROUND: Colour = (255, 255, 255)
_SHEET_INK: Colour = (30, 30, 30)


def draw_points(image: Picture, handles: Points, targets: Points) -> Image.Image:
    """Draw an instruction: a red disc on each handle, a blue one on each target and an arrow from one to the other.

    A handle that is on its target is a pin: one green square.

    Marks are outlined, so that they show on light and on dark ground, and grow with the picture's shorter side.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            as the pipeline takes it, at least 64 pixels on each side; points are on the upright picture.
        handles (`(points, 2)` numbers): pixels of `image`.
        targets (`(points, 2)` numbers): pixels of `image`, as many as handles.

    Returns:
        `PIL.Image.Image`: a new RGB picture of the size of `image`.

    Raises:
        ValueError: if handles or targets are not finite (x, y) pairs, or their numbers differ.

    Example:
        >>> picture = draw_points(Image.new("RGB", (64, 64)), handles=[(16, 32)], targets=[(48, 32)])
        >>> picture.size, picture.getpixel((16, 32)) == HANDLE_COLOUR, picture.getpixel((48, 32)) == TARGET_COLOUR
        ((64, 64), True, True)
    """
    starts, ends = _as_points("handles", handles, 2), _as_points("targets", targets, 2)
    _check_same_number(starts.shape[0], ends.shape[0], "handles", "targets")

    pinned = _pinned(starts, ends)

    def draw(canvas: _Canvas) -> None:
        for start, end in zip(starts[~pinned], ends[~pinned], strict=True):
            canvas.arrow(start, end, ARROW_COLOUR)
        canvas.discs(ends[~pinned], TARGET_COLOUR)
        canvas.discs(starts[~pinned], HANDLE_COLOUR)
        canvas.squares(starts[pinned], PIN_COLOUR)

    return _drawn_over(image, draw)


def draw_trajectories(image: Picture, trajectories: Trajectories, targets: Points) -> Image.Image:
    """Draw the path that each handle has gone: a yellow line, a red disc where it is now, a blue one on its target.

    A handle that began on its target is a pin: one green square.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): as for [`draw_points`].
        trajectories (`(iterations + 1, points, 2)` numbers): where each handle was before the first and after each
            iteration, in pixels of `image`; the `trajectories` of [`DynaDragPipelineOutput`].
        targets (`(points, 2)` numbers): pixels of `image`.

    Returns:
        `PIL.Image.Image`: a new RGB picture of the size of `image`.

    Raises:
        ValueError: if the shapes do not fit or a number is not finite.

    Example:
        >>> picture = draw_trajectories(Image.new("RGB", (64, 64)), [[(8, 32)], [(32, 32)]], targets=[(56, 32)])
        >>> picture.getpixel((20, 32)) == PATH_COLOUR, picture.getpixel((32, 32)) == HANDLE_COLOUR
        (True, True)
    """
    paths, ends = _as_points("trajectories", trajectories, 3), _as_points("targets", targets, 2)
    _check_same_number(paths.shape[1], ends.shape[0], "trajectories", "targets")

    pinned = _pinned(paths[0], ends)

    def draw(canvas: _Canvas) -> None:
        canvas.discs(ends[~pinned], TARGET_COLOUR)
        for point in np.flatnonzero(~pinned):
            canvas.line(paths[:, point], PATH_COLOUR)
        canvas.discs(paths[-1][~pinned], HANDLE_COLOUR)
        canvas.squares(ends[pinned], PIN_COLOUR)

    return _drawn_over(image, draw)


def flow_to_image(flow: np.ndarray | torch.Tensor, max_magnitude: float | None = None) -> Image.Image:
    """Colour a flow by the Middlebury wheel: the hue is the direction, the saturation the length, no motion is white.

    To the right is red, down is yellow to orange, left is cyan, up is violet.

    Args:
        flow (`(2, height, width)`): (u right, v down), in pixels.
        max_magnitude (`float`, *optional*): the length in pixels of full saturation, beyond which colours no longer
            change; by default the greatest length in `flow`. Give it to compare several flows.

    Returns:
        `PIL.Image.Image`: RGB, of the flow's size.

    Raises:
        ValueError: if `flow` has another shape or is not finite, or `max_magnitude` is not positive.

    Source:
        The colour code of Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011: 55 hues
        in six linear ramps.

    Example:
        >>> flow = np.zeros((2, 1, 2))
        >>> flow[0, 0, 0] = 3.0
        >>> picture = flow_to_image(flow)
        >>> picture.getpixel((0, 0)), picture.getpixel((1, 0))
        ((255, 0, 0), (255, 255, 255))
    """
    array = _to_numpy(flow)
    if array.ndim != 3 or array.shape[0] != 2 or not np.isfinite(array).all():
        raise ValueError(f"`flow` must be finite and of shape (2, height, width), got shape {array.shape}.")
    if max_magnitude is not None and not max_magnitude > 0:
        raise ValueError(f"`max_magnitude` must be a positive number of pixels, got {max_magnitude}.")
    u, v = array
    magnitude = np.hypot(u, v)
    full = max_magnitude or max(float(magnitude.max(initial=0)), np.finfo(np.float32).tiny)
    position = (np.arctan2(v, u) % (2 * np.pi)) / (2 * np.pi) * _WHEEL_POSITIONS[-1]
    hue = np.stack(
        [np.interp(position, _WHEEL_POSITIONS, ramp) for ramp in zip(*_WHEEL_COLOURS, strict=True)], axis=-1
    )
    saturation = np.minimum(magnitude / full, 1)[..., None]
    return Image.fromarray(np.rint(255 - saturation * (255 - hue)).astype(np.uint8))


def contact_sheet(
    source: Picture,
    result: Picture,
    output: DynaDragPipelineOutput,
    targets: Points,
    intermediates: int = 4,
    tile_size: int = 256,
) -> Image.Image:
    """Put an edit on one sheet: the source with its arrows, some iterations with the path so far, and the result.

    Args:
        source (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): the picture that was given to the pipeline.
        result (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): the edited picture.
        output ([`DynaDragPipelineOutput`]): of one picture. Iterations are shown as far as the records hold pictures
            (`return_intermediates=True`).
        targets (`(points, 2)` numbers): pixels of `source`.
        intermediates (`int`, defaults to 4): at most so many iterations, evenly spread, the last one among them.
        tile_size (`int`, defaults to 256): length of a tile's shorter side in pixels.

    Returns:
        `PIL.Image.Image`: RGB; up to three tiles make one row, more make two.

    Raises:
        ValueError: if `output` is that of a list of pictures, or points do not fit.

    Example:
        >>> from dynadrag_pipeline.pipeline_output import DynaDragPipelineOutput
        >>> picture = Image.new("RGB", (128, 64))
        >>> output = DynaDragPipelineOutput(images=[picture], trajectories=torch.tensor([[[8.0, 8.0]]]))
        >>> contact_sheet(picture, picture, output, targets=[(24, 8)]).size
        (1072, 304)
    """
    trajectories, iterations = _single_edit(output)
    upright = _as_rgb(source)
    scale = tile_size / min(upright.size)
    size = (round(upright.width * scale), round(upright.height * scale))
    paths = _scaled(_as_points("trajectories", trajectories, 3), upright.size, size)
    ends = _scaled(_as_points("targets", targets, 2), upright.size, size)

    def tile(picture: Picture) -> Image.Image:
        return _as_rgb(picture).resize(size, Image.Resampling.BICUBIC)

    tiles = [(draw_points(tile(upright), paths[0], ends), "source")]
    for number, picture in _evenly_spread(iterations, intermediates):
        tiles.append((draw_trajectories(tile(picture), paths[: number + 1], ends), f"iteration {number}"))
    tiles.append((tile(result), f"result ({str(output.stop_reason).replace('_', ' ')})"))
    return _arranged(tiles, columns=len(tiles) if len(tiles) <= 3 else -(-len(tiles) // 2))


def save_gif(
    output: DynaDragPipelineOutput,
    path: str | Path,
    source: Picture | None = None,
    frame_ms: int = 160,
    result: Picture | None = None,
) -> None:
    """Save the intermediate pictures of an edit as an endless GIF: see [`write_gif`].

    The file appears at `path` only when it is complete.

    Args:
        output ([`DynaDragPipelineOutput`]): of one picture, made with `return_intermediates=True`.
        path (`str` or `Path`): of the file; its folder must exist.
        source, frame_ms, result: as for [`write_gif`].

    Raises:
        ValueError: if the output holds no intermediate pictures, or is that of a list of pictures.

    Example:
        >>> save_gif(pipe(image, handles, targets, return_intermediates=True), "edit.gif")  # doctest: +SKIP
    """
    with atomic_file(path) as file:
        write_gif(output, file, source, frame_ms, result)


def write_gif(
    output: DynaDragPipelineOutput,
    file: BinaryIO,
    source: Picture | None = None,
    frame_ms: int = 160,
    result: Picture | None = None,
) -> None:
    """Write the intermediate pictures of an edit as an endless GIF, at the size that the edit ran at.

    The last frame stays for a second.

    Args:
        output ([`DynaDragPipelineOutput`]): of one picture, made with `return_intermediates=True`.
        file (`BinaryIO`): open for writing.
        source (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
            shown as the first frame, at the size of the others.
        frame_ms (`int`, defaults to 160): how long a frame is shown, in milliseconds.
        result (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
            shown as the last frame: what lies between is rougher than what came of it.

    Raises:
        ValueError: if the output holds no intermediate pictures, or is that of a list of pictures.
    """
    _, iterations = _single_edit(output)
    frames = [picture for _, picture in _evenly_spread(iterations, len(iterations))]
    if not frames:
        raise ValueError(
            "`output` holds no intermediate pictures: call the pipeline with `return_intermediates=True`."
        )
    size = frames[0].size
    if source is not None:
        frames.insert(0, _as_rgb(source).resize(size, Image.Resampling.BICUBIC))
    if result is not None:
        frames.append(_as_rgb(result).resize(size, Image.Resampling.BICUBIC))
    durations = [frame_ms] * (len(frames) - 1) + [1000]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


class _Canvas:
    """A transparent layer, finer than the picture, on which marks are drawn with an outline."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.factor = max(1, min(4, 4096 // max(size)))
        self.unit = self.factor * max(1.0, min(size) / 256)
        self.layer = Image.new("RGBA", (size[0] * self.factor, size[1] * self.factor))
        self._draw = ImageDraw.Draw(self.layer)

    def line(self, points: np.ndarray, colour: Colour) -> None:
        corners = [(float(x), float(y)) for x, y in self._on_layer(points)]
        for width, ink in ((5 * self.unit, OUTLINE_COLOUR), (2 * self.unit, colour)):
            if len(corners) > 1:
                self._draw.line(corners, fill=ink, width=round(width), joint="curve")

    def arrow(self, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
        """A shaft from `start` to `end`; its head touches the disc round `end`, and needs some room to be drawn."""
        self.line(np.stack([start, end]), colour)
        first, last = self._on_layer(np.stack([start, end]))
        length = float(np.hypot(*(last - first)))
        if length < 14 * self.unit:
            return
        along = (last - first) / length
        across = np.array([-along[1], along[0]])
        for grow, ink in ((1.5 * self.unit, OUTLINE_COLOUR), (0.0, colour)):
            tip = last - along * (4 * self.unit - grow)
            back = last - along * (10 * self.unit + grow)
            side = across * (3.5 * self.unit + grow)
            self._draw.polygon([tuple(tip), tuple(back + side), tuple(back - side)], fill=ink)

    def discs(self, centres: np.ndarray, colour: Colour) -> None:
        for x, y in self._on_layer(centres):
            for radius, ink in ((4.5, OUTLINE_COLOUR), (3.5, ARROW_COLOUR), (2.75, colour)):
                reach = radius * self.unit
                self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)

    def squares(self, centres: np.ndarray, colour: Colour) -> None:
        for x, y in self._on_layer(centres):
            for radius, ink in ((4.25, OUTLINE_COLOUR), (3.25, ARROW_COLOUR), (2.5, colour)):
                reach = radius * self.unit
                self._draw.rectangle((x - reach, y - reach, x + reach, y + reach), fill=ink)

    def _on_layer(self, points: np.ndarray) -> np.ndarray:
        return (points + 0.5) * self.factor - 0.5


def _drawn_over(image: Picture, draw: Callable[[_Canvas], None]) -> Image.Image:
    picture = _as_rgb(image)
    canvas = _Canvas(picture.size)
    draw(canvas)
    layer = canvas.layer.resize(picture.size, Image.Resampling.BOX)
    picture.paste(layer, mask=layer.getchannel("A"))
    return picture


def _as_rgb(picture: Picture) -> Image.Image:
    """A new RGB picture, turned, scaled to 8 bits and laid over white just as the pipeline does."""
    return _from_tensor(to_picture_tensor(picture)[0])


def _single_edit(output: DynaDragPipelineOutput) -> tuple[torch.Tensor, list[DragIteration]]:
    """Trajectories and iterations of an output, which must be that of one picture."""
    if isinstance(output.trajectories, list):
        raise ValueError("`output` must be that of one picture; for a list of pictures, pass each edit by itself.")
    return output.trajectories, cast("list[DragIteration]", output.iterations)


def _to_numpy(values: object) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _as_points(name: str, points: object, ndim: int) -> np.ndarray:
    shape = "(points, 2)" if ndim == 2 else "(iterations + 1, points, 2)"
    try:
        array = _to_numpy(points)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be numbers of shape {shape}, got {points!r}.") from error
    if array.ndim != ndim or array.shape[-1] != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite numbers of shape {shape}, got {array.tolist()!r}.")
    return array


def _check_same_number(first: int, second: int, first_name: str, second_name: str) -> None:
    if first != second:
        raise ValueError(
            f"`{first_name}` and `{second_name}` must have the same number of points, got {first} and {second}."
        )


def _pinned(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """`(points,)` bool: which pairs are pins, up to the rounding of scaled points."""
    return np.abs(starts - ends).max(axis=-1) < 1e-3


def _scaled(points: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]) -> np.ndarray:
    """Points of a picture of (width, height) `from_size` on the same picture at `to_size`, by pixel centres."""
    return (points + 0.5) * (np.array(to_size) / np.array(from_size)) - 0.5


def _evenly_spread(iterations: Sequence[DragIteration], most: int) -> list[tuple[int, Image.Image]]:
    """(number from 1, picture) of at most `most` iterations that hold a picture, evenly spread up to the last."""
    pictured = [(number, record.image) for number, record in enumerate(iterations, 1) if record.image is not None]
    count = min(most, len(pictured))
    chosen = [pictured[round((position + 1) * len(pictured) / count) - 1] for position in range(count)]
    return [(number, _from_tensor(image)) for number, image in chosen]


def _from_tensor(image: torch.Tensor) -> Image.Image:
    array = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


def _arranged(tiles: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Labelled tiles of one size on a plain ground, row by row."""
    width, height = tiles[0][0].size
    gap, strip = 16, max(32, min(width, height) // 8)
    font = ImageFont.load_default(size=strip * 0.6)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + (columns + 1) * gap, rows * (height + strip) + gap), _SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(tiles):
        left = gap + number % columns * (width + gap)
        top = gap + number // columns * (height + strip)
        sheet.paste(picture, (left, top))
        draw.text((left + width / 2, top + height + strip / 2), label, fill=_SHEET_INK, font=font, anchor="mm")
    return sheet
