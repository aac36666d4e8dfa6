"""The latent goes along with the motion: z_t^0 bent by all of it, and what supervision added, bent along.

Not of the paper, which moves content by gradients alone.
"""

from __future__ import annotations

import torch

from .dense_flow import DenseFlow, resize_shift, sampled_flow
from .latent_bend import NoisyLatent, bent_picture


class LatentCarry:
    """What z_t^k is made of: the original's latent and what was added since, each bent once by all that followed.

    A bend of a bend washes out, so flows are composed and the originals are kept.

    Args:
        original ([`NoisyLatent`]): z_t^0 of the unedited picture.
        noise (`torch.Tensor` of shape `(1, channels, h, w)`): the latent that the drag begins with.
        flow ([`DenseFlow`]): what the content has moved by before it.
        mask (`torch.Tensor` of shape `(h, w)`, *optional*): M on the latent's grid; nothing is bent outside.

    Attributes:
        flow ([`DenseFlow`]): what the content has moved by since the unedited picture.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): what the last move came to.
    """

    def __init__(
        self, original: NoisyLatent, noise: torch.Tensor, flow: DenseFlow, mask: torch.Tensor | None = None
    ) -> None:
        self.original = original
        self.flow = flow
        self.mask = mask
        self.size = (noise.shape[-2], noise.shape[-1])
        self._additions: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.latents = self._put_together()
        self._keep(noise.detach().float())

    def move(self, flow: DenseFlow, latents: torch.Tensor) -> torch.Tensor:
        """The latent after another motion.

        Args:
            flow ([`DenseFlow`]): of that motion alone.
            latents (`torch.Tensor` of shape `(1, channels, h, w)`):
                the latent before it; what differs from the last move's is what supervision added.

        Returns:
            `torch.Tensor` of shape `(1, channels, h, w)`.
        """
        self._keep(latents.detach())
        self.flow = self.flow.then(flow)
        self._additions = [
            (added, flow.backward + sampled_flow(backward, flow.backward)) for added, backward in self._additions
        ]
        self.latents = self._put_together()
        return self.latents

    def _keep(self, latents: torch.Tensor) -> None:
        added = latents - self.latents
        if added.any():
            self._additions.append((added, torch.zeros_like(self.flow.backward)))
        self.latents = latents

    def _put_together(self) -> torch.Tensor:
        bent = self.original.bent(self.flow)
        for added, backward in self._additions:
            bent = bent + bent_picture(added, resize_shift(backward, self.size))
        return bent if self.mask is None else torch.where(self.mask > 0.5, bent, self._unbent())

    def _unbent(self) -> torch.Tensor:
        """The original and all that was added, where it was added."""
        return torch.stack([self.original.noisy, *(added for added, _ in self._additions)]).sum(dim=0)
