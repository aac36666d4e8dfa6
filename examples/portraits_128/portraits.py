"""Pictures for training: folders and zip archives of face crops, as one uint8 tensor in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from motion_predictor.data.portraits import held_out_names

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def iter_image_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield `(file name, encoded bytes)` of every picture in a folder (searched recursively) or in a zip archive."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path.name, path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    yield Path(name).name, archive.read(name)
    else:
        raise ValueError(f"`{source}` is neither a folder nor a zip archive of pictures.")


def decode_square(data: bytes, size: int) -> np.ndarray:
    """Decode a picture to RGB, crop its central square and resize it to `[size, size, 3]` uint8."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def is_grey(pixels: np.ndarray) -> bool:
    """Whether a picture has (nearly) no colour: mean channel spread under 12 of 255, sepia prints included."""
    smallest, largest = pixels.min(axis=2).astype(int), pixels.max(axis=2).astype(int)
    return bool((largest - smallest).mean() < 12)


def load_portraits(
    sources: Iterable[Path], size: int = 128, held_out_from: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load all pictures of `sources` but the held-out ones of `held_out_from`.

    Returns:
        pictures `[N, 3, size, size]` uint8, and sampling weights `[N]` float32: grey pictures count a fifth of
        colour ones, and each source's colour pictures at least a quarter of all draws, so that a small, varied
        collection is not drowned by a large uniform one.
    """
    pictures, weights = [], []
    for source in sources:
        files = dict(iter_image_files(source))
        for name in held_out_names(files) if held_out_from is not None and source.samefile(held_out_from) else []:
            del files[name]
        loaded = [decode_square(data, size) for data in tqdm(files.values(), desc=f"Loading {source.name}")]
        weight = np.array([0.2 if is_grey(pixels) else 1.0 for pixels in loaded], dtype=np.float32)
        pictures += loaded
        weights.append(weight / weight.sum() * max(1.0, weight.sum() / 1500))
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.from_numpy(np.concatenate(weights))


def load_held_out(source: Path, size: int = 128) -> torch.Tensor:
    """The pictures of `source` that [`load_portraits`] leaves out: `[60, 3, size, size]` uint8."""
    files = dict(iter_image_files(source))
    loaded = [decode_square(files[name], size) for name in held_out_names(files)]
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).contiguous()


def draw_batch(
    pictures: torch.Tensor, weights: torch.Tensor, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw pictures with replacement, mirror half of them, and scale to `[-1, 1]`: `[B, 3, size, size]` float32."""
    index = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
    mirrored = torch.rand(batch_size, generator=generator) < 0.5
    batch = pictures[index].float() / 127.5 - 1
    return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
