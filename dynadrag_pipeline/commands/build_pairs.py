"""`dynadrag build-pairs`: pictures whose true outcome is known, to judge edits by."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from motion_predictor.common.checks import got
from motion_predictor.common.command_errors import CommandError, errors_as_one_line
from motion_predictor.common.output_folder import folder_of

if TYPE_CHECKING:
    from motion_predictor.data.video import VideoFile

    from ..evaluation.pairs import EvaluationPair

EXAMPLES = """\
examples:
  200 held-out faces that are set in motion, and 40 cuts from films; and then what they are for:

    dynadrag build-pairs --faces faces.zip --landmarks faces.npz --videos clip.mp4 talks/ --out pairs
    dynadrag evaluate pairs/portraits --methods "no edit" straight predicted --out runs/first

  FaceForensics++ and TED-talks at 512 pixels, of the videos that their split files hold back (for the paper's split
  into 95 and 5 %, give --val-share 0.05 in the place of --names, and train on what `build-dataset` leaves):

    dynadrag build-pairs --videos original_sequences/youtube/c23/videos --names test.json --size 512 --out pairs/ff
    dynadrag build-pairs --videos TED-talks/test --size 512 --out pairs/ted

  Large motions of faces that are small, large and off the middle, one to three handles:

    dynadrag build-pairs --faces faces.zip --landmarks faces.npz --smallest-face 0.2 --largest-turn 40 \\
        --least-displacement 0.12 --most-handles 3 --out pairs/large

what is written to --out:
  portraits/, videos/   a folder for each pair: source.png, target.png, mask.png, instruction.json, flow.npz
  */options.json        what the pairs of a set are made with
  portraits.png, ...    the first twelve of them
"""


def add_build_pairs_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `build-pairs` to the parser of `dynadrag`."""
    parser = commands.add_parser(
        "build-pairs",
        usage="dynadrag build-pairs [--faces PICTURES --landmarks FILE] [--videos VIDEOS ...] --out DIR [options]",
        help="make pairs of pictures whose true outcome is known, to judge edits by",
        description="Make pairs of a source, an instruction, and the picture that it should lead to (Sec. 4):\n"
        "held-out faces that are set in motion, and two frames of films, 15 to 55 apart. The same command goes on\n"
        "after Ctrl-C, or with more pairs; one with other options is refused.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--faces", metavar="PICTURES", type=Path, help="folder or zip archive of which 60 faces are held out"
    )
    parser.add_argument(
        "--landmarks",
        metavar="FILE",
        type=Path,
        help="of the faces, as for `build-portraits`: npz file with `files`, their names, and `landmarks`, the 478 "
        "vertices of MediaPipe's face mesh in fractions of the side",
    )
    parser.add_argument(
        "--held-out",
        metavar="FILE",
        type=Path,
        help="names of pictures that are held out, one in a line (default: the 60 of the smallest SHA-256 of names)",
    )
    parser.add_argument("--portrait-pairs", metavar="N", type=count_of, default=200, help="how many (default: 200)")
    parser.add_argument(
        "--least-displacement",
        metavar="SHARE",
        type=share_of,
        default=0.05,
        help="of the portraits: share of the side that some of each moves by at least (default: %(default)s)",
    )
    parser.add_argument("--most-handles", metavar="N", type=count_of, default=7, help="of a portrait (default: 7)")
    parser.add_argument(
        "--smallest-face",
        metavar="SHARE",
        type=share_of,
        help="frame each portrait anew, with a face anywhere, tilted, and of any height from this to 0.75 of the side "
        "(default: as the pictures are)",
    )
    parser.add_argument(
        "--largest-turn",
        metavar="DEGREES",
        type=float,
        help="that a head is turned at most, and hides parts of itself (default: as far as nothing is hidden)",
    )
    parser.add_argument(
        "--videos", metavar="VIDEOS", type=Path, nargs="+", help="files and folders; each takes its turn"
    )
    parser.add_argument(
        "--names",
        metavar="FILE",
        type=Path,
        help="of the videos, those that a JSON file names, without suffixes: a list, or a list of lists as "
        "FaceForensics++'s split files (default: all)",
    )
    parser.add_argument(
        "--val-share",
        metavar="SHARE",
        type=share_of,
        help="of the videos, those that `build-dataset` of the same files and folders holds out with this share (the "
        "paper's is 0.05) and its own seed of 0 (default: all)",
    )
    parser.add_argument("--video-pairs", metavar="N", type=count_of, default=40, help="how many (default: 40)")
    parser.add_argument("--size", metavar="PX", type=count_of, default=128, help="side of the pictures (default: 128)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance (default: 0)")
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="folder for the sets")
    parser.set_defaults(run=_build_pairs)


def count_of(text: str) -> int:
    """A whole number from 1 on, of an option."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is wanted; got '{text[:40]}'")
    return int(text)


def share_of(text: str) -> float:
    """A number over 0 and up to 1, of an option."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a number over 0, up to 1, is wanted; got '{text[:40]}'")
    return share


def _build_pairs(args: argparse.Namespace, written: list[Path]) -> None:
    if not args.faces and not args.videos:
        raise CommandError("give --faces with --landmarks, --videos, or both.")
    if bool(args.faces) != bool(args.landmarks):
        raise CommandError("--faces and --landmarks go together: the motion of a face is made from its landmarks.")
    for flag, chooser in (("--names", args.names), ("--val-share", args.val_share)):
        if chooser and not args.videos:
            raise CommandError(f"{flag} chooses among --videos: give these too.")
    _check_paths(args)
    with errors_as_one_line():
        try:
            from motion_predictor.data.dataset_folder import only_writer
            from motion_predictor.data.portraits import PortraitSource

            from ..evaluation.build_pairs import build, portrait_pairs, video_pairs
        except ModuleNotFoundError as error:
            raise CommandError(f"this needs {error.name}: pip install 'dynadrag[evaluation]'.") from error

        groups = _groups(args) if args.videos else []
        sets: list[tuple[Iterator[EvaluationPair], Path, int]] = []
        if args.faces:
            out = args.out / "portraits"
            source = PortraitSource(
                args.faces, args.landmarks, hold_out=args.held_out is None, held_out_list=args.held_out
            )
            pairs = portrait_pairs(
                source,
                out,
                args.seed,
                args.size,
                least_displacement=args.least_displacement,
                most_handles=args.most_handles,
                smallest_face=args.smallest_face,
                largest_turn=args.largest_turn,
            )
            sets.append((pairs, out, args.portrait_pairs))
        if args.videos:
            out = args.out / "videos"
            sets.append((video_pairs(groups, out, args.seed, args.size), out, args.video_pairs))
        with only_writer(args.out):
            for pairs, out, wanted in sets:
                written.append(out)
                build(pairs, out, wanted)


def _check_paths(args: argparse.Namespace) -> None:
    """What can be said of files and folders before anything is read or written."""
    files = {"--landmarks": args.landmarks, "--held-out": args.held_out, "--names": args.names}
    for flag, path in files.items():
        if path is not None and not path.is_file():
            raise CommandError(f"`{flag}` must be a file, got `{path}`, which is none.")
    if args.faces is not None and not (args.faces.is_dir() or zipfile.is_zipfile(args.faces)):
        raise CommandError(
            f"`--faces` must be a folder or a zip archive of pictures, got `{args.faces}`, which is neither."
        )
    ground = next(place for place in (args.out.absolute(), *args.out.absolute().parents) if place.exists())
    if not ground.is_dir():
        raise CommandError(f"`--out` must be a folder, got `{args.out}`, but `{ground}` is a file: name another.")


def _groups(args: argparse.Namespace) -> list[list[VideoFile]]:
    """The videos of each argument, those alone that are named and held out, if that is wanted."""
    from motion_predictor.data.shards import split_of
    from motion_predictor.data.video import find_videos

    names = None if args.names is None else names_of(args.names)
    share = 1.0 if args.val_share is None else args.val_share
    wanted = {
        video.path
        for video in find_videos(args.videos)  # named as `build-dataset` does, by all of them
        if (names is None or video.path.stem in names) and split_of(video.name, share, seed=0) == "val"
    }
    groups = [[video for video in find_videos([path]) if video.path in wanted] for path in args.videos]
    if not wanted:
        raise ValueError("`--names` and `--val-share` must leave some of the videos, got none of them.")
    return [group for group in groups if group]


def names_of(path: Path) -> set[str]:
    """The names in a JSON list, or in a list of lists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`--names` ({path}) must be a JSON file: {error}.") from error
    entries = content if isinstance(content, list) else [content]
    flat = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(name, str) for name in flat):
        raise ValueError(f"`--names` ({path}) must be a list of names, got {got(content)}.")
    return set(flat)
