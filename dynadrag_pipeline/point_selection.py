"""Dynamic selection of valid handle points by the similarity of UNet features (Sec. 3.2.2, Sec. 4.5)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .motion_supervision import sample_patches
from .settings import SelectionStrategy


def handle_target_similarity(features: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of the single feature vectors at each handle and at its target, sampled bilinearly.

    Args:
        features (`torch.Tensor` of shape `(1, channels, height, width)`): F(z_t^k).
        handles, targets (`torch.Tensor` of shape `(points, 2)`): (x, y) in cells of the grid of `features`.

    Returns:
        `torch.Tensor` of shape `(points,)` in [-1, 1].

    Example:
        >>> features = torch.eye(2)[None, :, None, :]  # two cells with orthogonal features
        >>> handle_target_similarity(features, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.])
    """
    at_handles, at_targets = (sample_patches(features, points, radius=0).flatten(1) for points in (handles, targets))
    return F.cosine_similarity(at_handles, at_targets, dim=1)


def below_threshold(similarities: torch.Tensor, candidates: torch.Tensor, threshold: float) -> torch.Tensor:
    """The paper's rule: candidates less similar than `threshold`, or the least similar one if there is none.

    Args:
        similarities (`torch.Tensor` of shape `(points,)`): from [`handle_target_similarity`].
        candidates (`torch.Tensor` of shape `(points,)`, bool): the handles that have not arrived.
        threshold (`float`): 0.6 in the paper.

    Returns:
        `torch.Tensor` of shape `(points,)`, bool; all `False` only if there are no candidates.

    Example:
        >>> below_threshold(torch.tensor([0.9, 0.7, 0.1]), torch.tensor([True, True, False]), 0.6)
        tensor([False,  True, False])
    """
    valid = candidates & (similarities < threshold)
    if not valid.any() and candidates.any():
        least = torch.where(candidates, similarities, torch.inf).argmin()
        valid[least] = True
    return valid


@dataclass
class PointSelector:
    """Chooses, iteration by iteration, the handles that motion supervision drags.

    Attributes:
        strategy (`str` or `None`):
            `"all"`: below the threshold, judged anew in each iteration (ADS, the paper's best); `"first"`: judged in
            the first iteration, the rest is abandoned for good (FDS); `"random"`: as many as `"all"` would take,
            drawn at random (RS, the paper's control); `None`: every handle that has not arrived.
        threshold (`float`): the similarity from which on a handle is set aside; 0.6 in the paper.
        generator (`torch.Generator`, *optional*): the source of `"random"`'s draws, on the CPU.
        abandoned (`torch.Tensor` of shape `(points,)`, bool, *optional*): what `"first"` gave up, once it has.
    """

    strategy: SelectionStrategy | None = "all"
    threshold: float = 0.6
    generator: torch.Generator | None = None
    abandoned: torch.Tensor | None = field(default=None, init=False)

    def __call__(self, similarities: torch.Tensor, arrived: torch.Tensor) -> torch.Tensor:
        """Choose among the handles that have not `arrived`; both arguments and the answer have shape `(points,)`."""
        candidates = ~arrived
        if self.strategy is None:
            return candidates
        if self.strategy == "first":
            if self.abandoned is None:
                self.abandoned = candidates & ~below_threshold(similarities, candidates, self.threshold)
            return candidates & ~self.abandoned
        valid = below_threshold(similarities, candidates, self.threshold)
        if self.strategy == "random":
            return self._as_many_at_random(valid, candidates)
        return valid

    def _as_many_at_random(self, valid: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Replace `valid` by as many `candidates`, drawn without replacement."""
        indices = candidates.nonzero().flatten()
        order = torch.randperm(len(indices), generator=self.generator).to(indices.device)
        drawn = torch.zeros_like(valid)
        drawn[indices[order[: int(valid.sum())]]] = True
        return drawn
