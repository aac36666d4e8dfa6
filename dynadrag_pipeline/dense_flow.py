"""Where everything goes and where everything comes from: a dense motion, its inverse, its folds and its holes.

A flow `(1, 2, h, w)` is (x, y) in pixels of a picture of its own size. Forward, it says how far each place goes;
backward, how far away lies what comes to each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

FLOW_SIDE = 128
"""Dense flows are kept on a grid of so many pixels along the short side, or of the picture's, if it has fewer."""

LEAST_AREA = 0.05
"""Share of its area that a place keeps at least: what is squeezed below that, or turned over, is a fold."""

MOST_STRETCH = 4.0
"""Times its area that a place may be stretched to: beyond that, content is missing rather than magnified."""

CLOSE = 0.5
"""Pixels within which a way there and back ends where it began."""

INVERSION_ROUNDS = 100
UNFOLDING_ROUNDS = 24


@dataclass(frozen=True)
class DenseFlow:
    """A dense motion, both ways.

    Attributes:
        forward (`torch.Tensor` of shape `(1, 2, h, w)`): how far what is at each place goes.
        backward (`torch.Tensor`, same shape): how far away lies what comes to each place; guessed where nothing does.
        covered (`torch.Tensor` of shape `(1, 1, h, w)`): 1 where something comes to, 0 in the disocclusions.

    Example:
        >>> to_the_right = DenseFlow.of(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8))
        >>> to_the_right.backward[0, :, 4, 4].round(decimals=3).tolist(), to_the_right.covered[0, 0, 4].int().tolist()
        ([-2.0, -0.0], [0, 0, 1, 1, 1, 1, 1, 1])
    """

    forward: torch.Tensor
    backward: torch.Tensor
    covered: torch.Tensor

    @classmethod
    def of(cls, forward: torch.Tensor) -> DenseFlow:
        """The motion of a forward flow, which must not fold: see [`unfolded`]."""
        backward = inverse_flow(forward)
        residual = backward + sampled_flow(forward, backward)
        covered = (residual.norm(dim=1, keepdim=True) <= CLOSE).float() * _covered(backward)
        return cls(forward, filled(backward, covered), covered)

    @classmethod
    def still(cls, size: tuple[int, int], like: torch.Tensor) -> DenseFlow:
        """Nothing moves in a picture of (height, width)."""
        height, width = flow_size(size)
        nothing = torch.zeros(1, 2, height, width, device=like.device)
        return cls(nothing, nothing, torch.ones_like(nothing[:, :1]))

    @property
    def occluded(self) -> torch.Tensor:
        """`(1, 1, h, w)`: 1 for what is covered by something else afterwards, or has left the picture."""
        way_round = (self.forward + sampled_flow(self.backward, self.forward)).norm(dim=1, keepdim=True)
        return 1 - (way_round <= CLOSE).float() * _inside(self.forward)

    def then(self, following: DenseFlow) -> DenseFlow:
        """This motion with another one after it."""
        forward = self.forward + sampled_flow(following.forward, self.forward)
        backward = following.backward + sampled_flow(self.backward, following.backward)
        came = (sampled_flow(self.covered, following.backward) > 0.5).float()
        covered = following.covered * came * _covered(backward)
        return DenseFlow(forward, filled(backward, covered), covered)


def flow_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the grid of dense flows for a picture of (height, width)."""
    scale = min(1.0, FLOW_SIDE / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def inverse_flow(forward: torch.Tensor) -> torch.Tensor:
    """The backward flow of a forward one, `b(y) = -f(y + b(y))`, by damped iteration; it has none in holes."""
    backward = -forward
    for _ in range(INVERSION_ROUNDS):
        backward = backward - 0.5 * (backward + sampled_flow(forward, backward))
    return backward


def area_ratio(flow: torch.Tensor) -> torch.Tensor:
    """`(1, 1, h, w)`: the least Jacobian determinant of `x + flow(x)` at the corners of each cell between pixels."""
    height, width = flow.shape[-2:]
    if min(height, width) < 2:
        return torch.ones_like(flow[:, :1])
    along_x = flow.diff(dim=3)  # [1, 2, h, w - 1]
    along_y = flow.diff(dim=2)
    corners = [
        (1 + along_x[:, :1, rows]) * (1 + along_y[:, 1:, :, columns])
        - along_x[:, 1:, rows] * along_y[:, :1, :, columns]
        for rows in (slice(None, -1), slice(1, None))
        for columns in (slice(None, -1), slice(1, None))
    ]
    least = torch.stack(corners).amin(dim=0)
    return F.pad(least, (0, 1, 0, 1), mode="replicate")


def folds(forward: torch.Tensor) -> torch.Tensor:
    """`(1, 1, h, w)` bool: where a forward flow lays content over other content, turned over or squeezed to nothing.

    Example:
        >>> towards_each_other = torch.zeros(1, 2, 4, 8)
        >>> towards_each_other[:, 0, :, :4] = 2.0
        >>> folds(towards_each_other)[0, 0, 0].int().tolist()
        [0, 0, 0, 1, 0, 0, 0, 0]
    """
    return area_ratio(forward) < LEAST_AREA


def unfolded(forward: torch.Tensor) -> torch.Tensor:
    """The flow, made smoother round its folds until there are none; shorter everywhere, if that does not help.

    Args:
        forward (`torch.Tensor` of shape `(1, 2, h, w)`): a forward flow; comes back as it is, if it has no folds.
    """
    for turn in range(UNFOLDING_ROUNDS):
        folded = folds(forward)
        if not folded.any():
            return forward
        radius = 1 + turn // 2
        around = F.max_pool2d(folded.float(), 2 * radius + 1, stride=1, padding=radius)
        forward = forward.lerp(boxed(forward, radius), boxed(around, radius))
    while folds(forward).any():
        forward = 0.8 * forward
    return forward


def sampled_flow(values: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """`(1, c, h, w)` of a map, each place's `displacement` `(1, 2, h, w)` away: bilinear; beyond it, its border."""
    return sampled_in_borders(values, _places(displacement), "bilinear")


def shifted(picture: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`(1, channels, h, w)` of a picture, each pixel taken `shift` `(1, 2, h, w)` away from where it is shown."""
    return sampled_in_borders(picture, _places(shift), "bicubic")


def sampled_in_borders(maps: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    """`grid_sample` of maps, whose border is repeated outwards, wherever a device has it."""
    device = sampling_device(maps.device)
    sampled = F.grid_sample(maps.to(device), places.to(device), mode=mode, padding_mode="border", align_corners=False)
    return sampled.to(maps.device)


def sampling_device(device: torch.device) -> torch.device:
    """Where maps of a device are sampled: of Apple's GPUs on the CPU, since torch before 2.13 can't do it there."""
    return torch.device("cpu") if device.type == "mps" else device


def resize_shift(shift: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The same shift for a picture of another (height, width): as many pixels more or fewer as that has."""
    factors = shift.new_tensor([size[1] / shift.shape[-1], size[0] / shift.shape[-2]])[:, None, None]
    return factors * F.interpolate(shift, size=size, mode="bilinear", align_corners=False)


def filled(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Values `(1, c, h, w)` where they are known `(1, 1, h, w)`; elsewhere means of what is known near by.

    Where nothing is known at all, they stay as they are.
    """
    if bool(known.all()) or not known.any():
        return values
    given, given_weight = torch.where(known > 0, values, torch.zeros_like(values)), known
    filled_values, missing = values, known == 0
    radius = 1
    while missing.any():
        weight = boxed(given_weight, radius)
        found = missing & (weight > 1e-4)
        mean = boxed(given, radius) / weight.clamp(min=1e-4)
        filled_values = torch.where(found, mean, filled_values)
        missing = missing & ~found
        radius *= 2
    return filled_values


def boxed(maps: torch.Tensor, radius: int) -> torch.Tensor:
    """Means over neighbourhoods: two boxes have the spread of a Gaussian, and the border only what is there."""
    for _ in range(2):
        maps = F.avg_pool2d(maps, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return maps


def _places(shift: torch.Tensor) -> torch.Tensor:
    height, width = shift.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).to(shift), torch.arange(width).to(shift), indexing="ij")
    return torch.stack([(2 * (x + shift[:, 0]) + 1) / width - 1, (2 * (y + shift[:, 1]) + 1) / height - 1], dim=-1)


def _covered(backward: torch.Tensor) -> torch.Tensor:
    """`(1, 1, h, w)`: 1 where a backward flow points into the picture, and does not stretch content too far."""
    return _inside(backward) * (area_ratio(backward) >= 1 / MOST_STRETCH).float()


def _inside(displacement: torch.Tensor) -> torch.Tensor:
    """`(1, 1, h, w)`: 1 where a displacement ends in the picture."""
    height, width = displacement.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).to(displacement), torch.arange(width).to(displacement), indexing="ij")
    x, y = x + displacement[:, 0], y + displacement[:, 1]
    inside = (x >= -CLOSE) & (x <= width - 1 + CLOSE) & (y >= -CLOSE) & (y <= height - 1 + CLOSE)
    return inside[:, None].float()
