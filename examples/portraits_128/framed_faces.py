"""Faces in another framing at every draw, for the UNet: small and large, anywhere, tilted, in any light."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from moving_frames import SIZE, random_source
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample, interpolate
from tqdm import tqdm

from motion_predictor.data.head_fields import CHIN, FOREHEAD
from motion_predictor.data.portraits import Pictures, PortraitSource
from motion_predictor.data.still_framing import Framing
from motion_predictor.data.tilted_window import surrounded

STILL = 320  # pixels of a still's side, and half of that for small faces, which would have holes else
FRAMINGS = 32  # of each still and kind
SMALL, LARGE, AS_IN_A_PORTRAIT = (0.2, 0.4), (0.4, 0.75), (0.48, 0.65)  # heights of a face, of the side
SMALL_SHARE, PORTRAIT_SHARE = 0.25, 0.5
LIT_SHARE, LIGHT = 0.5, (0.7, 1.3)  # colours are left alone: a UNet that saw tints draws from noise in grey


class FramedFaces:
    """Stills with a face, to be drawn from; each with framings that were drawn beforehand, for the small and the rest.

    Args:
        stills (`torch.Tensor` of shape `(N, 3, 640, 640)`): uint8, with half a side of surroundings around each.
        small, large (`torch.Tensor` of shape `(N, F, 2, 3)`): where a frame's places lie in a still, as
            `affine_grid` wants it.
    """

    def __init__(self, stills: torch.Tensor, small: torch.Tensor, large: torch.Tensor) -> None:
        self.stills, self.small, self.large = stills, small, large
        half = [interpolate(part.float(), scale_factor=0.5, mode="area") for part in stills.split(64)]
        self.half_stills = torch.cat([each.round().byte() for each in half])

    @staticmethod
    def load(sources: Sequence[PortraitSource], seed: int) -> FramedFaces:
        """All pictures of `sources` with a known face but those that are held out.

        Raises:
            ValueError: a source can't be read, or has no such pictures.
        """
        parts = [part for source in sources for part in _portraits(source, seed)]
        if not parts:
            raise ValueError("`sources` must have a picture with a known face that may be trained on, got none.")
        return FramedFaces(*(torch.stack(each) for each in zip(*parts, strict=True)))

    def to(self, device: torch.device) -> FramedFaces:
        """The same on a device."""
        return FramedFaces(*(each.to(device) for each in (self.stills, self.small, self.large)))

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Frames `[count, 3, 128, 128]` in `[-1, 1]`, half of them mirrored and half in other light."""
        few = round(SMALL_SHARE * count)
        kinds = ((self.half_stills, self.small, few), (self.stills, self.large, count - few))
        frames = torch.cat([_framed(*kind, generator) for kind in kinds if kind[2]])
        mirrored = _uniform(count, generator) < 0.5
        return in_other_light(torch.where(mirrored, frames.flip(-1), frames), generator) * 2 - 1


def source_of(archive: Path, held_out: Path | None = None) -> PortraitSource:
    """An archive of pictures, with what lies beside it: `NAME_landmarks.npz` of `NAME.zip`, and `NAME_people.json`."""
    people = archive.with_name(f"{archive.stem}_people.json")
    return PortraitSource(
        archive,
        archive.with_name(f"{archive.stem}_landmarks.npz"),
        people=people if people.exists() else None,
        held_out_list=held_out,
    )


def in_other_light(frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the frames `[B, 3, h, w]` in `[0, 1]` darker or lighter, flatter or harder."""
    low, high = LIGHT
    brightness, contrast = (low + (high - low) * _uniform(len(frames), generator) for _ in range(2))
    lit = (brightness * frames).clamp(0, 1)
    grey = lit.mean(dim=(1, 2, 3), keepdim=True)
    lit = torch.lerp(grey, lit, contrast).clamp(0, 1)
    return torch.where(_uniform(len(frames), generator) < LIT_SHARE, lit, frames)


def place_in_still(framing: Framing) -> np.ndarray:
    """Where a frame's places lie in a still with half a side of surroundings, both from -1 to 1: `(2, 3)`."""
    c, s = np.cos(framing.tilt), np.sin(framing.tilt)
    turned_back = np.array([[c, s], [-s, c]]) / framing.scale
    return np.hstack([turned_back / 2, (turned_back @ (0.5 - np.array(framing.middle)))[:, None]])


def _portraits(source: PortraitSource, seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each picture: the still, its framings with a small face, and the others."""
    landmarks, held_out, people = source.load_landmarks(), source.held_out(), source.load_people()
    with source.open() as pictures, ThreadPoolExecutor() as threads:
        names = [
            name
            for name in pictures.names()
            if name in landmarks and name not in held_out and people.get(name) not in held_out
        ]
        marks = [landmarks[name][:, :2] for name in names]
        loaded = threads.map(_portrait, repeat(pictures), names, marks, repeat(seed))
        return list(tqdm(loaded, total=len(names), desc=f"Loading {source.pictures.name}"))


def _portrait(
    pictures: Pictures, name: str, marks: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random, face = random_source(seed, name), float(np.linalg.norm(marks[CHIN] - marks[FOREHEAD]))
    still = pictures.open_square(name).resize((STILL, STILL), Image.Resampling.LANCZOS)
    canvas = surrounded(torch.from_numpy(np.array(still)).permute(2, 0, 1)[None].float(), STILL // 2)
    as_in_a_portrait = round(PORTRAIT_SHARE / (1 - SMALL_SHARE) * FRAMINGS)
    heights = ([SMALL] * FRAMINGS, [AS_IN_A_PORTRAIT] * as_in_a_portrait + [LARGE] * (FRAMINGS - as_in_a_portrait))
    small, large = (
        torch.from_numpy(np.stack([place_in_still(Framing.draw(marks, face, random, *height)) for height in each]))
        for each in heights
    )
    return canvas[0].round().byte(), small.float(), large.float()


def _framed(stills: torch.Tensor, framings: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Frames `[count, 3, 128, 128]` in `[0, 1]`."""
    which, framing = (
        torch.randint(most, (count,), generator=generator, device=stills.device) for most in framings.shape[:2]
    )
    grid = affine_grid(framings[which, framing], [count, 3, 2 * SIZE, 2 * SIZE], align_corners=False)
    seen = grid_sample(stills[which].float() / 255, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return interpolate(seen, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
