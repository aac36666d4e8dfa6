"""Portraits with the landmarks of their faces: folders and zip archives of pictures, and one npz file beside each."""

from __future__ import annotations

import hashlib
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
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class PortraitSource:
    """Pictures in a folder (searched with its subfolders) or a zip archive, and the landmarks of their faces.

    Attributes:
        pictures (`Path`): the folder or the archive.
        landmarks (`Path`): an npz file with `files` `[N]`, names of pictures without folders, and `landmarks` `[N,
            478, 3]`, the vertices of MediaPipe's face mesh: x and y as fractions of the side, z in the same scale.
            Pictures that are not named there are left out.
        hold_out (`bool`, *optional*, defaults to `False`): whether the pictures that [`held_out_names`] names are for
            validation.
    """

    pictures: Path
    landmarks: Path
    hold_out: bool = False

    def load_landmarks(self) -> dict[str, np.ndarray]:
        """The landmarks `[478, 3]` float32 of each picture, by file name.

        Raises:
            ValueError: if the file does not hold what is described above.
        """
        try:
            with np.load(self.landmarks, allow_pickle=False) as stored:
                names, landmarks = stored["files"].tolist(), stored["landmarks"].astype(np.float32)
        except (EOFError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"`landmarks` must be an npz file with `files` and `landmarks`, got {self.landmarks} ({error})."
            ) from error
        if landmarks.shape != (len(names), 478, 3):
            raise ValueError(
                f"`landmarks` in {self.landmarks} must be of shape {(len(names), 478, 3)}, got {landmarks.shape}."
            )
        return dict(zip(names, landmarks, strict=True))

    def held_out(self) -> set[str]:
        """The file names that are for validation."""
        if not self.hold_out:
            return set()
        with self.open() as pictures:
            return set(held_out_names(pictures.names(), HELD_OUT_FACES))

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
        """A picture as `[size, size, 3]` uint8 RGB.

        Args:
            name (`str`): one of [`Pictures.names`].
            size (`int`): side that it is resized to, in pixels.

        Returns:
            `np.ndarray` of shape `(size, size, 3)`: uint8 RGB.

        Raises:
            ValueError: if it is not square, or cannot be read as a picture.
        """
        member = self._members[name]
        try:
            if self._archive is None:
                image = open_picture(self._source / member).convert("RGB")
            else:
                image = decode_picture(self._archive.read(member), member).convert("RGB")
        except Exception as error:  # whatever archives and decoders say of damaged bytes
            raise ValueError(f"`{name}` in {self._source} must be a picture, got another file ({error}).") from error
        if image.width != image.height:
            raise ValueError(f"`{name}` in {self._source} must be square, got {image.width} x {image.height} pixels.")
        return np.array(image.resize((size, size), Image.Resampling.LANCZOS))


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
