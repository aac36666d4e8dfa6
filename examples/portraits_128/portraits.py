"""Pictures for training: folders and zip archives of face crops, as one uint8 tensor in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

from motion_predictor.common.picture_files import decode_picture
from motion_predictor.data.portraits import held_out_names

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GREY_WEIGHT = 0.2  # of a coloured picture's
SMALLEST_COLOUR_SPREAD = 8.0  # of 255
LARGEST_ZOOM = 1.15


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


def decode_square(name: str, data: bytes, size: int) -> np.ndarray:
    """Decode the picture of a file to RGB, crop its central square and resize it to `[size, size, 3]` uint8."""
    image = decode_picture(data, name).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def is_grey(pixels: np.ndarray) -> bool:
    """Whether all colours of a picture are shades of one tint, as in black and white, sepia and blue prints.

    Such colours lie on a line, so that they vary (in standard deviations) in its direction alone.
    """
    variances = np.linalg.eigvalsh(np.cov(pixels.reshape(-1, 3), rowvar=False))
    return bool(variances[1] < SMALLEST_COLOUR_SPREAD**2)


def load_portraits(
    sources: Iterable[Path],
    size: int = 128,
    held_out_from: Path | None = None,
    shares: Sequence[float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load all pictures of `sources` but the held-out ones of `held_out_from`.

    Returns:
        pictures `[N, 3, size, size]` uint8, and sampling weights `[N]` float32: grey pictures count a fifth of
        colour ones. Of all draws, `shares` (one number of each source, on any scale) come from a source. Without
        them each source counts by its number of pictures, but a small one as 1,500 coloured ones, so that a small,
        varied collection is not drowned by a large uniform one.

    Raises:
        ValueError: a source holds no pictures, or none that may be trained on.
    """
    pictures, weights = [], []
    for index, source in enumerate(sources):
        files = dict(iter_image_files(source))
        for name in held_out_names(files) if held_out_from is not None and source.samefile(held_out_from) else []:
            del files[name]
        if not files:
            raise ValueError(f"`{source}` holds no pictures to train on ({', '.join(IMAGE_SUFFIXES)}).")
        with ThreadPoolExecutor() as threads:
            decoded = threads.map(decode_square, files.keys(), files.values(), repeat(size))
            loaded = list(tqdm(decoded, total=len(files), desc=f"Loading {source.name}"))
        weight = np.array([GREY_WEIGHT if is_grey(pixels) else 1.0 for pixels in loaded], dtype=np.float32)
        share = max(1.0, weight.sum() / 1500) if shares is None else shares[index]
        pictures += loaded
        weights.append(weight / weight.sum() * share)
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.from_numpy(np.concatenate(weights))


def load_held_out(source: Path, size: int = 128) -> torch.Tensor:
    """The pictures of `source` that [`load_portraits`] leaves out: `[60, 3, size, size]` uint8."""
    files = dict(iter_image_files(source))
    loaded = [decode_square(name, files[name], size) for name in held_out_names(files)]
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).contiguous()


def draw_batch(
    pictures: torch.Tensor, weights: torch.Tensor, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw pictures with replacement, mirror half of them, and scale to `[-1, 1]`: `[B, 3, size, size]` float32."""
    index = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
    mirrored = torch.rand(batch_size, generator=generator, device=generator.device) < 0.5
    batch = pictures[index].float() / 127.5 - 1
    return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


def enlarge_some(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Enlarge half of the pictures `[B, 3, h, w]` a little, about a random place.

    A thousand passes over a few thousand faces teach a network those faces; varied a little, they are more. Nothing
    from outside a picture comes into view, so that no border is learnt.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(len(batch), *shape, generator=generator, device=generator.device)

    side = 1 - (1 - 1 / LARGEST_ZOOM) * uniform(1, 1) * (uniform(1, 1) < 0.5)  # of what is seen, as a share
    corner = (2 * uniform(2, 1) - 1) * (1 - side)
    seen = torch.cat([side * torch.eye(2, device=batch.device), corner], dim=-1)
    return grid_sample(batch, affine_grid(seen, list(batch.shape), align_corners=False), align_corners=False)
