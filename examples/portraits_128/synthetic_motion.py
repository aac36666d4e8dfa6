"""Exact synthetic motion of still portraits: heads that turn, faces that change expression, regions that are dragged.

A portrait with 3-D face landmarks is given a smooth motion with a known path: its displacement field is defined on the
pixels of the picture itself, so nothing has to be warped and the labels carry no error of an optical-flow network.
Lengths are fractions of the picture's side until a sample is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from portraits import decode_square, held_out_names, is_grey, iter_image_files
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

from motion_predictor.conditioning import sample_flow

FIELD_SIDE = 32  # cells per side on which fields are computed: motion is smooth, pictures are not
MAX_HANDLES = 7

# The label of a sample is its motion a tenth of the way on. A horizon of ceil(n / 10) frames, n of them being left, is
# between 1/10 and 2/15 of the way; which one, a still picture cannot tell, so the limit 1/10 stands for all.
STEP_SHARE = 0.1

# Vertices of the MediaPipe face mesh.
FOREHEAD, CHIN, LEFT_EDGE, RIGHT_EDGE = 10, 152, 234, 454
LOWER_LIP, LEFT_CORNER, RIGHT_CORNER = 14, 61, 291
LEFT_BROW, RIGHT_BROW = 105, 334


@dataclass
class Faces:
    """Pictures `[N, 3, S, S]` uint8, landmarks `[N, 478, 3]` as a fraction of the side, sampling weights `[N]`."""

    pictures: torch.Tensor
    landmarks: torch.Tensor
    weights: torch.Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.pictures[index].float() / 255, self.landmarks[index]


@dataclass
class MotionBatch:
    """Pictures in [0, 1], and for each a set of handles with targets and the flow that is to be predicted (pixels)."""

    pictures: torch.Tensor  # [B, 3, S, S]
    handles: torch.Tensor  # [B, 7, 2]
    targets: torch.Tensor  # [B, 7, 2]
    valid: torch.Tensor  # [B, 7]
    flow: torch.Tensor  # [B, 2, S, S]


def load_faces(
    sources: Iterable[Path], landmark_files: Iterable[Path], size: int, held_out_from: Path | None = None
) -> tuple[Faces, Faces | None]:
    """Load the pictures that have landmarks: those for training, and the held-out ones of `held_out_from`.

    Grey pictures count a fifth of colour ones.
    """
    training: list[tuple[np.ndarray, np.ndarray]] = []
    held_out: list[tuple[np.ndarray, np.ndarray]] = []
    for source, landmark_file in zip(sources, landmark_files, strict=True):
        stored = np.load(landmark_file)
        landmarks = dict(zip(stored["files"].tolist(), stored["landmarks"].astype(np.float32), strict=True))
        files = dict(iter_image_files(source))
        kept_back = set(held_out_names(files)) if held_out_from and source.samefile(held_out_from) else set()
        for name in tqdm([name for name in files if name in landmarks], desc=f"Loading {source.name}"):
            pair = decode_square(files[name], size), landmarks[name]
            (held_out if name in kept_back else training).append(pair)
    return _stack(training), _stack(held_out) if held_out else None


def _stack(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Faces:
    pictures = torch.from_numpy(np.stack([picture for picture, _ in pairs])).permute(0, 3, 1, 2).contiguous()
    weights = torch.tensor([0.2 if is_grey(picture) else 1.0 for picture, _ in pairs])
    return Faces(pictures, torch.from_numpy(np.stack([landmarks for _, landmarks in pairs])), weights)


class FaceFrame:
    """The face's own axes: origin between forehead and chin, x to its side, y down, its height the unit."""

    def __init__(self, landmarks: torch.Tensor):
        forehead, chin = landmarks[:, FOREHEAD, :2], landmarks[:, CHIN, :2]
        self.origin = (forehead + chin) / 2  # [B, 2]
        self.height = (chin - forehead).norm(dim=1)[:, None]  # [B, 1]
        self.down = (chin - forehead) / self.height  # [B, 2]
        self.side = torch.stack([self.down[:, 1], -self.down[:, 0]], dim=1)

    def coordinates(self, points: torch.Tensor) -> torch.Tensor:
        """Points `[B, P, 2]` of the picture in the face's coordinates."""
        offset = (points - self.origin[:, None]) / self.height[:, None]
        return torch.stack([(offset * self.side[:, None]).sum(-1), (offset * self.down[:, None]).sum(-1)], dim=-1)

    def vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors `[B, P, 2]` of the face's coordinates on the picture."""
        turned = vectors[..., :1] * self.side[:, None] + vectors[..., 1:] * self.down[:, None]
        return turned * self.height[:, None]


class RandomMotion:
    """A motion for each of B portraits, drawn at random: `displacement(share)` is its field, that share of it done."""

    def __init__(self, landmarks: torch.Tensor, generator: torch.Generator):
        self.landmarks = landmarks
        self.frame = FaceFrame(landmarks)
        self.count = len(landmarks)
        self.generator = generator
        cells = (torch.arange(FIELD_SIDE) + 0.5) / FIELD_SIDE
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        self.grid = torch.stack([x, y], dim=-1).view(1, -1, 2).expand(self.count, -1, -1)  # [B, P, 2]
        self.face_grid = self.frame.coordinates(self.grid)

        kind = self._uniform(0, 1, 1, 1)
        self.with_head = (kind < 0.55).float()
        self.with_expression = ((kind > 0.35) & (kind < 0.75)).float()
        self.with_bumps = (kind >= 0.75).float()
        # Logarithmic: near its target a handle has little way left, and must be led no less surely.
        amplitude = 10 ** self._uniform(-0.8, 0.3, 1, 1)
        self._draw_head(amplitude)
        self.linear = (self._expression() * self.with_expression + self._bumps() * self.with_bumps) * amplitude

    def displacement(self, share: float) -> torch.Tensor:
        """The field `[B, 2, FIELD_SIDE, FIELD_SIDE]`, as a fraction of the side, once `share` of the motion is done.

        A head turns, so that its points run on arcs; expressions and drags run straight.
        """
        field = self._head(share) * self.with_head + self.linear * share
        return field.transpose(1, 2).reshape(self.count, 2, FIELD_SIDE, FIELD_SIDE)

    def _draw_head(self, amplitude: torch.Tensor) -> None:
        depth = _head_depth(self.landmarks, self.grid, self.face_grid)
        edges = self.landmarks[:, [LEFT_EDGE, RIGHT_EDGE], 2].mean(dim=1, keepdim=True)
        neck = self.frame.origin + self.frame.vectors(torch.tensor([[[0.0, 0.35]]]))[:, 0]
        self.pivot = torch.cat([neck, edges], dim=1)[:, None]  # [B, 1, 3], behind the face
        self.surface = torch.cat([self.grid, depth[..., None]], dim=-1) - self.pivot
        self.head_weight = _head_weight(self.face_grid)
        present = (self._uniform(0, 1, 1, 6) < 0.6).float() * amplitude
        spread = torch.tensor([0.16, 0.26, 0.14, 0.05, 0.04, 0.06])  # pitch, yaw, roll in radians; shift; log scale
        self.pose = (self._normal(1, 6) * spread * present)[:, 0]

    def _head(self, share: float) -> torch.Tensor:
        pose = self.pose * share  # [B, 6]
        turned = self.surface @ _rotation(pose[:, :3]).transpose(1, 2) * pose[:, 5].exp()[:, None, None]
        moved = (turned - self.surface)[..., :2] + pose[:, None, 3:5]
        return moved * self.head_weight

    def _expression(self) -> torch.Tensor:
        """Jaw, smile and brows, each in about half of the cases."""
        marks = self.frame.coordinates(self.landmarks[..., :2])
        present = (self._uniform(0, 1, 1, 3) < 0.6).float()
        jaw, smile, brows = (self._uniform(-0.3, 1, 1, 3) * present * 0.14).unbind(-1)

        lip = marks[:, LOWER_LIP : LOWER_LIP + 1]
        jaw_centre = (lip + marks[:, CHIN : CHIN + 1]) / 2
        below_the_lip = torch.sigmoid((self.face_grid - lip)[..., 1:] / 0.03)
        field = _bump(self.face_grid, jaw_centre, 0.28, 0.26) * below_the_lip * _vector(0 * jaw, jaw)
        for corner, outward in ((LEFT_CORNER, -1), (RIGHT_CORNER, 1)):
            bump = _bump(self.face_grid, marks[:, corner : corner + 1], 0.13, 0.13)
            field = field + bump * _vector(0.6 * outward * smile, -0.5 * smile)
        for brow in (LEFT_BROW, RIGHT_BROW):
            field = field + _bump(self.face_grid, marks[:, brow : brow + 1], 0.2, 0.1) * _vector(0 * brows, -brows / 2)
        return self.frame.vectors(field)

    def _bumps(self, most: int = 3) -> torch.Tensor:
        """Plain drags of smooth regions anywhere, one to `most`, so that the network is not blind outside faces."""
        field = torch.zeros_like(self.grid)
        for index in range(most):
            radius = 0.05 * 6 ** self._uniform(0, 1, 1, 1)
            angle = self._uniform(0, 2 * math.pi, 1, 1)
            length = (radius * self._uniform(0.2, 1.2, 1, 1)).clamp(max=0.2)
            drag = torch.cat([angle.cos(), angle.sin()], dim=-1) * length
            drag = drag * (self._uniform(0, 1, 1, 1) < 1 / (index + 1))
            field = field + _bump(self.grid, self._uniform(0.05, 0.95, 1, 2), radius, radius) * drag
        return field

    def _uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.count, *shape, generator=self.generator).clamp(-1.5, 1.5)


def _head_depth(landmarks: torch.Tensor, grid: torch.Tensor, face_grid: torch.Tensor) -> torch.Tensor:
    """Depth `[B, P]` of the head: that of the landmarks nearby, and towards the hair that of an ellipsoid."""
    marks = landmarks[:, ::4]  # every fourth of the 478 is dense enough for a field of 32 x 32 cells
    nearness = torch.exp(-torch.cdist(grid, marks[..., :2]).square() / (2 * 0.04**2))  # [B, P, M]
    back = landmarks[:, [LEFT_EDGE, RIGHT_EDGE], 2].mean(dim=1, keepdim=True)
    front = landmarks[..., 2].amin(dim=1, keepdim=True)
    ellipsoid = back - (back - front) * 0.7 * (1 - _head_radius(face_grid).square()).clamp(min=0).sqrt()
    known = nearness.sum(dim=-1)
    return ((nearness * marks[:, None, :, 2]).sum(dim=-1) + 0.3 * ellipsoid) / (known + 0.3)


def _head_radius(face_grid: torch.Tensor) -> torch.Tensor:
    """1 on the outline of the head with its hair, an ellipse in the face's coordinates."""
    return ((face_grid[..., 0] / 0.56).square() + ((face_grid[..., 1] + 0.15) / 0.72).square()).sqrt()


def _head_weight(face_grid: torch.Tensor) -> torch.Tensor:
    """1 on the head, falling smoothly to 0 on shoulders and background: `[B, P, 1]`."""
    inward = ((1.45 - _head_radius(face_grid)) / 0.45).clamp(0, 1)
    return (inward.square() * (3 - 2 * inward))[..., None]


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices `[B, 3, 3]` of pitch, yaw and roll `[B, 3]`, in radians."""
    generators = torch.tensor(
        [
            [[0.0, 0, 0], [0, 0, -1], [0, 1, 0]],
            [[0.0, 0, 1], [0, 0, 0], [-1, 0, 0]],
            [[0.0, -1, 0], [1, 0, 0], [0, 0, 0]],
        ]
    )
    return torch.matrix_exp(torch.einsum("ba,aij->bij", angles, generators))


def _bump(
    grid: torch.Tensor, centre: torch.Tensor, width: float | torch.Tensor, height: float | torch.Tensor
) -> torch.Tensor:
    """A Gaussian bump of height 1 round `centre`: `[B, P, 1]`."""
    offset = grid - centre
    return torch.exp(-(offset[..., :1] / width).square() / 2 - (offset[..., 1:] / height).square() / 2)


def _vector(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, y], dim=-1)


def draw_motion_batch(faces: Faces, count: int, generator: torch.Generator, augment: bool = True) -> MotionBatch:
    """Draw pictures and a motion for each, handles where it moves, and the flow of its first tenth.

    Handles (1 to 7) are drawn without replacement with a probability proportional to the length of the displacement;
    one in ten is drawn anywhere instead, mostly where nothing moves, and says "stay". `augment` mirrors half of the
    pictures, enlarges half by up to 1.6, and varies brightness, contrast and colour.
    """
    pictures, landmarks = faces.draw(count, generator)
    side = pictures.shape[-1]
    motion = RandomMotion(landmarks, generator)
    fields = torch.cat([motion.displacement(1.0), motion.displacement(STEP_SHARE)], dim=1)  # [B, 4, F, F]
    pictures, fields = _view(pictures, fields, generator, augment)
    displacement, flow = fields[:, :2] * side, fields[:, 2:] * side
    handles, valid = draw_handles(displacement, generator)
    targets = handles + sample_flow(displacement, handles)
    return MotionBatch(pictures, handles, targets, valid, flow)


def draw_handles(displacement: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Handles `[B, 7, 2]` between pixels, and which of them are valid: the first 1 to 7."""
    count, _, height, width = displacement.shape
    length = displacement.norm(dim=1).flatten(1)
    where = torch.multinomial(length + 1e-9, MAX_HANDLES, generator=generator)
    anywhere = torch.randint(height * width, where.shape, generator=generator)
    where = torch.where(torch.rand(where.shape, generator=generator) < 0.1, anywhere, where)
    pixels = torch.stack([where % width, where // width], dim=-1)
    handles = pixels + torch.rand(pixels.shape, generator=generator) - 0.5
    limits = torch.tensor([width - 1.0, height - 1.0])
    number = torch.randint(1, MAX_HANDLES + 1, (count, 1), generator=generator)
    return handles.clamp(torch.zeros(2), limits), torch.arange(MAX_HANDLES) < number


def _view(
    pictures: torch.Tensor, fields: torch.Tensor, generator: torch.Generator, augment: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and their fields (at the size of the pictures) as seen through a random window."""
    count = len(pictures)
    if not augment:
        window = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(count, -1, -1)
        return pictures, _look(fields, window, pictures.shape)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom = 1 + uniform(0, 0.6) * (uniform(0, 1) < 0.5)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    centre = uniform(-1, 1, 2) * (1 - 1 / zoom)[:, None]
    zero = torch.zeros(count)
    window = torch.stack([mirror / zoom, zero, centre[:, 0], zero, 1 / zoom, centre[:, 1]], dim=1).view(-1, 2, 3)
    fields = _look(fields, window, pictures.shape) * zoom[:, None, None, None]
    fields = fields * torch.stack([mirror, torch.ones(count)] * 2, dim=1)[:, :, None, None]
    pictures = _look(pictures, window, pictures.shape)
    grey = pictures.mean(dim=1, keepdim=True)
    pictures = torch.lerp(pictures, grey, (uniform(0, 1, 1, 1, 1) < 0.2).float())
    pictures = (pictures - 0.5) * uniform(0.75, 1.25, 1, 1, 1) + 0.5 + uniform(-0.1, 0.1, 3, 1, 1)
    return pictures.clamp(0, 1), fields


def _look(images: torch.Tensor, window: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    grid = affine_grid(window, [len(images), images.shape[1], *shape[-2:]], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
