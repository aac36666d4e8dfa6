"""Portraits with the landmarks of their faces: folders and zip archives of pictures, and one npz file beside each."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..common.picture_files import decode_picture, open_picture

HELD_OUT_FACES = 60
MARKS = {"landmarks": (478, 3), "pose": (33, 4)}  # of a picture, by the name of their array
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, eq=False)
class Marks:
    """What is known of a still, in fractions of its side.

    Attributes:
        landmarks (`np.ndarray` of shape `(478, 3)`, *optional*): float32, the vertices of its face.
        pose (`np.ndarray` of shape `(33, 4)`, *optional*): float32, the joints of its body.
    """

    landmarks: np.ndarray | None = None
    pose: np.ndarray | None = None


@dataclass(frozen=True)
class PortraitSource:
    """Pictures in a folder (searched with its subfolders) or a zip archive, and the landmarks of their faces.

    Attributes:
        pictures (`Path`): the folder or the archive.
        landmarks (`Path`, *optional*): an npz file with `files` `[N]`, names of pictures without folders, and
            `landmarks` `[N, 478, 3]`, the vertices of MediaPipe's face mesh, or `pose` `[N, 33, 4]`, the joints of its
            pose, or both: x and y as fractions of the side, z in the same scale, and of joints how visible they are.
            Rows of NaN are unknown. Pictures that are not named there are left out. None: nothing is known of any
            picture.
        hold_out (`bool`, *optional*, defaults to `False`): whether the pictures that [`held_out_names`] names are for
            validation.
        people (`Path`, *optional*): a JSON file, a list of objects with the `file` name of a picture and the `person`
            it shows; the pictures of a person are on one side of the split.
        held_out_list (`Path`, *optional*): a text file with names of pictures or people that are for validation, one
            in a line.
    """

    pictures: Path
    landmarks: Path | None = None
    hold_out: bool = False
    people: Path | None = None
    held_out_list: Path | None = None

    def load_marks(self) -> dict[str, Marks]:
        """What is known of each picture, by file name; of a source without landmarks, of none.

        Raises:
            ValueError: if the file does not hold what is described above.
        """
        if self.landmarks is None:
            with self.open() as pictures:
                return {name: Marks() for name in pictures.names()}
        try:
            with np.load(self.landmarks, allow_pickle=False) as stored:
                names = stored["files"].tolist()
                known = {name: stored[name].astype(np.float32) for name in MARKS if name in stored}
        except (EOFError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            # Of other files numpy says how to unpickle them, which nobody should.
            why = f" ({error})" if zipfile.is_zipfile(self.landmarks) else ""
            raise ValueError(
                f"`landmarks` must be an npz file with `files` and `landmarks`, got {self.landmarks}{why}."
            ) from error
        if not known:
            raise ValueError(f"`landmarks` must be an npz file with `landmarks` or `pose`, got {self.landmarks}.")
        for name, values in known.items():
            if values.shape != (len(names), *MARKS[name]):
                raise ValueError(
                    f"`{name}` in {self.landmarks} must be of shape {(len(names), *MARKS[name])}, got {values.shape}."
                )
        return {
            file: Marks(**{name: values[row] for name, values in known.items() if not np.isnan(values[row]).all()})
            for row, file in enumerate(names)
        }

    def load_landmarks(self) -> dict[str, np.ndarray]:
        """The landmarks `[478, 3]` float32 of each picture that has some, by file name.

        Raises:
            ValueError: if the file does not hold what is described above.
        """
        return {name: marks.landmarks for name, marks in self.load_marks().items() if marks.landmarks is not None}

    def load_people(self) -> dict[str, str]:
        """The person on each picture, by file name, where that is said.

        Raises:
            ValueError: if the file does not hold what is described above.
        """
        if self.people is None:
            return {}
        try:
            listed = json.loads(self.people.read_text(encoding="utf-8"))
            return {entry["file"]: str(entry["person"]) for entry in listed if entry.get("person") is not None}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`people` must be a JSON list of objects with `file` and `person`, got {self.people} "
                f"({type(error).__name__}: {error})."
            ) from error

    def held_out(self) -> set[str]:
        """The names of pictures and people that are for validation."""
        names: set[str] = set()
        if self.held_out_list is not None:
            lines = self.held_out_list.read_text(encoding="utf-8").splitlines()
            names = {line.strip() for line in lines if line.strip()}
        if self.hold_out:
            with self.open() as pictures:
                names |= set(held_out_names(pictures.names(), HELD_OUT_FACES))
        people = self.load_people()
        return names | {people[name] for name in names if name in people}

    @contextmanager
    def open(self) -> Iterator[Pictures]:
        """The pictures, to be read by name.

        Raises:
            ValueError: if `pictures` is neither a folder nor a zip archive, or two pictures have one name.
        """
        if self.pictures.is_dir():
            paths = {str(path.relative_to(self.pictures)): path for path in sorted(self.pictures.rglob("*"))}
            yield Pictures(self.pictures, _by_name(self.pictures, paths), None)
        elif zipfile.is_zipfile(self.pictures):
            try:
                archive = zipfile.ZipFile(self.pictures)
            except zipfile.BadZipFile as error:
                raise ValueError(f"`pictures` must be a whole zip archive, got {self.pictures} ({error}).") from error
            with archive:
                yield Pictures(self.pictures, _by_name(self.pictures, sorted(archive.namelist())), archive)
        else:
            raise ValueError(f"`pictures` must be a folder or a zip archive of pictures, got {self.pictures}.")


class Pictures:
    """An open source of pictures."""

    def __init__(self, source: Path, members: dict[str, str], archive: zipfile.ZipFile | None):
        self._source = source
        self._members = members
        self._archive = archive

    def names(self) -> list[str]:
        """All file names, without folders, in order."""
        return sorted(self._members)

    def read(self, name: str, size: int) -> np.ndarray:
        """A square picture as `[size, size, 3]` uint8 RGB.

        Args:
            name (`str`): one of [`Pictures.names`].
            size (`int`): side that it is resized to, in pixels.

        Returns:
            `np.ndarray` of shape `(size, size, 3)`: uint8 RGB.

        Raises:
            ValueError: if it is not square, or cannot be read as a picture.
        """
        return np.array(self.open_square(name).resize((size, size), Image.Resampling.LANCZOS))

    def open_square(self, name: str) -> Image.Image:
        """A square picture as RGB, of its own size.

        Args:
            name (`str`): one of [`Pictures.names`].

        Raises:
            ValueError: if it is not square, or cannot be read as a picture.
        """
        image = self.open(name)
        if image.width != image.height:
            raise ValueError(f"`{name}` in {self._source} must be square, got {image.width} x {image.height} pixels.")
        return image

    def open(self, name: str) -> Image.Image:
        """A picture as RGB, of its own size.

        Args:
            name (`str`): one of [`Pictures.names`].

        Raises:
            ValueError: if it cannot be read as a picture.
        """
        member = self._members[name]
        try:
            if self._archive is None:
                return open_picture(self._source / member).convert("RGB")
            return decode_picture(self._archive.read(member), member).convert("RGB")
        except Exception as error:  # whatever archives and decoders say of damaged bytes
            raise ValueError(f"`{name}` in {self._source} must be a picture, got another file ({error}).") from error


def held_out_names(names: Iterable[str], count: int = HELD_OUT_FACES) -> list[str]:
    """Pick the `count` names with the smallest SHA-256: a split that needs no list and no random state.

    Args:
        names (`Iterable[str]`): file names.
        count (`int`, *optional*, defaults to `HELD_OUT_FACES`): how many are held out.

    Returns:
        `list[str]`: those that are held out.

    Example:
        >>> held_out_names(["ada.jpg", "grace.jpg", "katherine.jpg"], count=1)
        ['grace.jpg']
    """
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count]


def _by_name(source: Path, members: Iterable[str]) -> dict[str, str]:
    by_name: dict[str, str] = {}
    for member in members:
        name = PurePosixPath(member).name
        if not name.lower().endswith(PICTURE_SUFFIXES):
            continue
        if name in by_name:
            raise ValueError(
                f"`pictures` must have a name each, got `{by_name[name]}` and `{member}` in {source}: rename one."
            )
        by_name[name] = member
    return by_name
