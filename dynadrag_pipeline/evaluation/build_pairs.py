"""Pairs to judge edits by: faces and films that no network has seen, and where their content truly went.

Faces that are held out are set in motion, so that every part's motion is known exactly; of films two frames are taken
(Sec. 4.1, 8), with optical flow between them, chained from frame to frame, and checked forward against backward. Pair
n does not depend on how many are made: the first ones are a fair sample already.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.json_file import read_json, write_json
from motion_predictor.data.dataset_folder import check_same_settings
from motion_predictor.data.head_fields import HeadFields
from motion_predictor.data.optical_flow import make_optical_flow
from motion_predictor.data.portrait_motion import pixel_centres
from motion_predictor.data.portrait_records import (
    MAX_HANDLES,
    NothingGoesSoFar,
    PortraitPair,
    draw_apart,
    portrait_pair,
    stays_inside,
    where_it_changes,
)
from motion_predictor.data.portrait_settings import PortraitSettings
from motion_predictor.data.portraits import Marks, PortraitSource
from motion_predictor.data.still_framing import framed_stills
from motion_predictor.data.tracks import FlowStep, chain_tracks, has_texture, is_cut
from motion_predictor.data.video import UnusableVideo, VideoFile, read_frames, read_header

from ..visualization import draw_points
from .pairs import EvaluationPair, load_pairs

OPTIONS_FILE = "options.json"  # of a set: what it was begun with
LEAST_DISPLACEMENT = 0.05  # of the side: some handle goes so far
LONGEST_SPAN, SHORTEST_SPAN = 55, 15  # frames from source to target (Sec. 8)
TRIES = 20  # start frames of one video, or framings of a portrait, for one pair


def random_source(seed: int, *labels: str | int) -> np.random.Generator:
    """Chance that depends on the seed and on what it is for, and on nothing that was drawn before."""
    digest = hashlib.sha256("/".join(map(str, labels)).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def begin_or_go_on(out: Path, options: dict[str, Any]) -> None:
    """Keep what a set is made with, in its folder; go on with no other options than it was begun with.

    A set that was begun before such a file was written is taken as it is.

    Args:
        out (`Path`): folder of the set.
        options (`dict[str, Any]`): all that its pairs depend on; plain values for JSON.

    Raises:
        ValueError: if it was begun with others.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as out:
        ...     begin_or_go_on(Path(out), {"size": 128})
        ...     read_json(Path(out, OPTIONS_FILE), "remove it")
        {'size': 128}
    """
    file = out / OPTIONS_FILE
    if not any(out.glob("[!.]*/instruction.json")):
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, options)
    elif file.exists():
        check_same_settings(file, read_json(file, "put its like back, or choose another folder"), options)


def told_by_names(*groups: list[str]) -> str:
    """What tells groups of files from others, for people and for [`begin_or_go_on`]: where they lie does not matter.

    Example:
        >>> told_by_names(["ada.png", "grace.png"])
        '2 files (6297743c)'
    """
    digest = hashlib.sha256("//".join("/".join(names) for names in groups).encode()).hexdigest()
    return f"{sum(map(len, groups))} files ({digest[:8]})"


def portrait_pairs(
    source: PortraitSource,
    out: Path,
    seed: int,
    side: int,
    least_displacement: float = LEAST_DISPLACEMENT,
    most_handles: int = MAX_HANDLES,
    smallest_face: float | None = None,
    largest_turn: float | None = None,
) -> Iterator[EvaluationPair]:
    """Held-out faces in turn, each time with another motion and other handles, without an end.

    A turn whose picture cannot be used, or moves too little, is left out, and named on stderr.

    Args:
        source ([`PortraitSource`]): pictures with landmarks, of which some are held out.
        out (`Path`): folder of the set; what is there already is read from there.
        seed (`int`): of all chance.
        side (`int`): of the square pictures.
        least_displacement (`float`, *optional*, defaults to 0.05): of the side: some point moves so far, or farther.
        most_handles (`int`, *optional*, defaults to 7): of a pair.
        smallest_face (`float`, *optional*): of the side: frame each pair anew, with a face anywhere, tilted,
            and of any height from this to 0.75. None: as the pictures are.
        largest_turn (`float`, *optional*): degrees that a head is turned at most, and hides parts of itself. None: as
            far as it can turn and hide nothing.

    Raises:
        ValueError: if an option is out of range, no face is held out, none of them can be used, or the set was begun
            with other options or faces.
    """
    settings = PortraitSettings(size=side, seed=seed, smallest_face=smallest_face, largest_turn=largest_turn)
    turn = None if largest_turn is None else math.radians(largest_turn)
    held_out, known = source.held_out(), source.load_marks()
    with source.open() as pictures:
        named = [name for name in pictures.names() if name in held_out]
    marks = {name: known[name] for name in named if name in known and known[name].landmarks is not None}
    if not named:
        raise ValueError(f"`--faces` must hold pictures that are held out, got none of them in {source.pictures}.")
    if not marks:
        raise ValueError(
            f"`--landmarks` ({source.landmarks}) must name some of the {len(named)} pictures of `--faces` "
            f"({source.pictures}) that are held out, got none of them: give the file that was made of these pictures."
        )
    options = {"least_displacement": least_displacement, "most_handles": most_handles}
    framing = {"smallest_face": smallest_face, "largest_turn": largest_turn}
    begin_or_go_on(out, {"size": side, "seed": seed, "faces": told_by_names(list(marks)), **options, **framing})
    return _faces_in_turn(source, marks, out, settings, least_displacement, most_handles, turn)


def _faces_in_turn(
    source: PortraitSource, marks: dict[str, Marks], out: Path, settings: PortraitSettings, *wanted: Any
) -> Iterator[EvaluationPair]:
    names = list(marks)
    order = random_source(settings.seed, "order").permutation(len(names))
    barren = 0
    with source.open() as pictures:
        for number in count():
            name = names[order[number % len(names)]]
            folder = f"{number:03d}_{Path(name).stem}"
            if (out / folder).exists():
                barren = 0
                yield EvaluationPair.load(out / folder)
                continue
            random = random_source(settings.seed, number, name)
            stills = framed_stills(pictures, name, marks[name], settings, random)
            try:
                pair = first_that_goes_so_far(stills, random, *wanted)
            except ValueError as error:
                barren += 1
                if barren == len(names):
                    raise
                tqdm.write(f"`{folder}` is left out: {error}", file=sys.stderr)
                continue
            barren = 0
            yield EvaluationPair(folder, pair.source, pair.target, pair.mask, pair.handles, pair.targets, pair.flow)


def first_that_goes_so_far(
    stills: Iterator[tuple[np.ndarray, HeadFields]], random: np.random.Generator, *wanted: Any
) -> PortraitPair:
    """A pair of the first of a few framings in which a motion goes so far: a small face does not go a long way.

    Args:
        stills (`Iterator`): a portrait as it may be framed.
        random (`np.random.Generator`): the only source of chance.
        wanted: the rest of what [`portrait_pair`] takes.

    Raises:
        NothingGoesSoFar: if no motion in any of them does.
    """
    for picture, fields in islice(stills, TRIES - 1):
        with suppress(NothingGoesSoFar):
            return portrait_pair(picture, fields, random, *wanted)
    return portrait_pair(*next(stills), random, *wanted)


def video_pairs(groups: list[list[VideoFile]], out: Path, seed: int, side: int) -> Iterator[EvaluationPair]:
    """Groups of videos in turn, and the videos of each in turn, until none of them gives another pair.

    A video that cannot be read is left out, and named on stderr.

    Args:
        groups (`list[list[VideoFile]]`): videos, of which the groups take turns.
        out (`Path`): folder of the set; what is there already is read from there.
        seed (`int`): of all chance.
        side (`int`): of the square pictures.

    Raises:
        ValueError: if an option is out of range, or the set was begun with other options or videos.
    """
    PortraitSettings(size=side, seed=seed)  # refuses the same sides and seeds
    names = [[video.name for video in group] for group in groups]
    begin_or_go_on(out, {"size": side, "seed": seed, "videos": told_by_names(*names)})
    return _videos_in_turn(groups, out, seed, side)


def _videos_in_turn(groups: list[list[VideoFile]], out: Path, seed: int, side: int) -> Iterator[EvaluationPair]:
    orders = [random_source(seed, "order", number).permutation(len(group)) for number, group in enumerate(groups)]
    unusable: set[Path] = set()
    barren = 0
    for turn in count():
        round_, number = divmod(turn, len(groups))
        video = groups[number][orders[number][round_ % len(groups[number])]]
        name = f"{turn:03d}_{video.name}"
        pair: EvaluationPair | None = None
        if (out / name).exists():
            pair = EvaluationPair.load(out / name)
        elif video.path not in unusable:
            try:
                pair = video_pair(video, name, random_source(seed, turn, video.name), side)
            except UnusableVideo as error:
                unusable.add(video.path)
                tqdm.write(f"`{video.path}` is left out: {error}", file=sys.stderr)
        barren = 0 if pair else barren + 1
        if barren >= len(groups) * max(len(group) for group in groups):
            if barren == turn + 1:
                raise ValueError("`--videos` must show something that moves and can be followed, got no such film.")
            return
        if pair:
            yield pair


def video_pair(video: VideoFile, name: str, random: np.random.Generator, side: int) -> EvaluationPair | None:
    """A pair cut from a video, of the middle of its frames.

    Args:
        video ([`VideoFile`]): whose frames it is cut from.
        name (`str`): of the pair.
        random (`np.random.Generator`): the only source of chance.
        side (`int`): of the square pictures, a multiple of 4.

    Returns:
        [`EvaluationPair`], *optional*: none if nothing was found that goes far enough and can be followed.

    Raises:
        UnusableVideo: if the video can't be opened or holds no pictures.

    Example:
        >>> (video,) = find_videos(["talk.mp4"])  # doctest: +SKIP
        >>> video_pair(video, "000_talk", random_source(0, video.name), side=128).save(Path("pairs"))  # doctest: +SKIP
    """
    header = read_header(video.path)
    number = header.frames
    while number > SHORTEST_SPAN:
        needed = set(chain.from_iterable(draw_spans(number, deepcopy(random))))
        frames, read = {}, 0  # of a film, no more than all tries look at
        for read, frame in enumerate(islice(read_frames(video.path, side, header.fps), max(needed) + 1), start=1):
            if read - 1 in needed:
                frames[read - 1] = central_square(frame).copy()  # a view would keep what was cut off
        if read <= max(needed):  # damaged: it ends before its header says
            number = read
            continue
        tries = (cut_pair(name, [frames[index] for index in span], random) for span in draw_spans(number, random))
        return next((pair for pair in tries if pair), None)
    return None


def draw_spans(frames: int, random: np.random.Generator) -> Iterator[range]:
    """Where to look in a video, try by try; each span is drawn when it is asked for.

    Args:
        frames (`int`): that the video has.
        random (`np.random.Generator`): the only source of chance.
    """
    for _ in range(TRIES):
        first = int(random.integers(frames - SHORTEST_SPAN))
        span = int(random.integers(SHORTEST_SPAN, LONGEST_SPAN + 1))
        yield range(first, min(first + span + 1, frames))


def cut_pair(name: str, frames: list[np.ndarray], random: np.random.Generator) -> EvaluationPair | None:
    """The first and the last of some frames as a pair.

    Args:
        name (`str`): of the pair.
        frames (`list` of `np.ndarray` of shape `(side, side, 3)`): uint8 RGB, without gaps.
        random (`np.random.Generator`): the only source of chance.

    Returns:
        [`EvaluationPair`], *optional*: none if hardly anything moves.

    Example:
        >>> noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
        >>> picture = np.array(noise.resize((96, 96)))
        >>> frames = [picture[16:80, 16 - 2 * number : 80 - 2 * number] for number in range(4)]
        >>> pair = cut_pair("000_drift", frames, np.random.default_rng(0))
        >>> (pair.targets - pair.handles).round()[0].tolist()
        [6.0, 0.0]
    """
    side = frames[0].shape[0]
    flow, back = dense_motion(frames), dense_motion(frames[::-1])
    length = np.nan_to_num(np.linalg.norm(flow, axis=-1)) * has_texture(frames[0]) * stays_inside(flow)
    if length.max() < LEAST_DISPLACEMENT * side:
        return None
    handles = draw_apart(length, int(random.integers(1, MAX_HANDLES + 1)), side / 12, random)
    columns, rows = handles.astype(int).T
    return EvaluationPair(
        name,
        frames[0],
        frames[-1],
        where_it_changes(flow, back),
        handles,
        handles + flow[rows, columns],
        flow,
    )


def dense_motion(frames: list[np.ndarray]) -> np.ndarray:
    """Where each pixel of the first frame is in the last, minus where it was: optical flow, chained.

    Args:
        frames (`list` of `np.ndarray` of shape `(side, side, 3)`): uint8 RGB, without gaps, at least two.

    Returns:
        `np.ndarray` of shape `(side, side, 2)`: float32, (x, y) in pixels; NaN where it is lost, and all over behind a
        cut to another scene.

    Example:
        >>> noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
        >>> picture = np.array(noise.resize((96, 96)))
        >>> flow = dense_motion([picture[16:80, 16:80], picture[15:79, 14:78], picture[14:78, 12:76]])
        >>> np.nanmedian(flow, axis=(0, 1)).round().tolist()
        [4.0, 2.0]
    """
    optical_flow = make_optical_flow("dis", None, torch.device("cpu"))
    steps, side = [], frames[0].shape[0]
    for first, second in pairwise(frames):
        step = FlowStep.from_arrays(optical_flow(first, second), optical_flow(second, first))
        if is_cut(step, has_texture(first)):
            return np.full((side, side, 2), np.nan, dtype=np.float32)
        steps.append(step)
    return chain_tracks(pixel_centres(side).reshape(-1, 2), steps)[:, -1].reshape(side, side, 2)


def central_square(frame: np.ndarray) -> np.ndarray:
    """The middle of a frame.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`): of any shape.

    Returns:
        `np.ndarray` of shape `(side, side, 3)`: a view of it; `side` is its shorter one.

    Example:
        >>> central_square(np.zeros((48, 64, 3))).shape
        (48, 48, 3)
    """
    side = min(frame.shape[:2])
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    return frame[top : top + side, left : left + side]


def pairs_sheet(pairs: list[EvaluationPair], zoom: int = 2) -> Image.Image:
    """Source with its points, mask and target of each pair: two pairs in a row.

    Args:
        pairs (`list` of [`EvaluationPair`]): with true outcomes, at least one.
        zoom (`int`, *optional*, defaults to 2): how many pixels of the sheet show one of a picture, along each side.
    """
    side = zoom * pairs[0].source.shape[0]
    picture = Image.new("RGB", (6 * side, -(-len(pairs) // 2) * side), "white")
    for index, pair in enumerate(pairs):
        cells = [Image.fromarray(array).resize((side, side)) for array in (pair.source, pair.mask, pair.outcome)]
        handles, targets = ((zoom * (points + 0.5) - 0.5) for points in (pair.handles, pair.targets))
        cells[0] = draw_points(cells[0], torch.from_numpy(handles), torch.from_numpy(targets))
        for place, cell in enumerate(cells):
            picture.paste(cell, ((index % 2 * 3 + place) * side, index // 2 * side))
    return picture


def build(pairs: Iterator[EvaluationPair], out: Path, wanted: int) -> None:
    """Write pairs, and a picture of the first twelve beside their folder.

    Args:
        pairs (`Iterator`): of [`EvaluationPair`].
        out (`Path`): folder of the set; what is there already stays.
        wanted (`int`): how many.
    """
    made = 0
    for pair in tqdm(islice(pairs, wanted), total=wanted, desc=out.name):
        if not (out / pair.name).exists():
            pair.save(out)
        made += 1
    missing = "" if made == wanted else f": no more than that, and {wanted} were asked for"
    print(f"{made} pair{'s' * (made != 1)} in {out}{missing}")
    if made:
        with atomic_file(out.with_suffix(".png")) as file:
            pairs_sheet(load_pairs(out, 12)).save(file, "PNG")
