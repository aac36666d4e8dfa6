"""SimVP as it was published: weights under its code's names, and a forward pass written from the paper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

KERNELS = (3, 5, 7, 11)


def layer(store: nn.ModuleDict, name: str, module: nn.Module) -> None:
    """Put a module under a dotted name, which torch does not allow in a name: by modules in modules."""
    *path, last = name.split(".")
    for part in path:
        if part not in store:
            store[part] = nn.ModuleDict()
        store = store[part]
    store[last] = module


class SimVP:
    """The published structure, CVPR 2022 (and OpenSTL's IncepU): weights by their names, and a forward pass over them.

    Per frame: N_S convolutions of stride 1, 2, 1, 2; over all frames: 2 N_T Inception blocks with concatenated skips;
    per frame again: the way back, which sees the first layer's output before its last layer.
    """

    def __init__(
        self,
        frames=1,
        channels=(6, 2),
        spatial=8,
        translator=16,
        n_s=4,
        n_t=3,
        groups=2,
        kernels=KERNELS,
        openstl=False,
    ):
        torch.manual_seed(1)
        self.frames, self.n_s, self.n_t, self.groups, self.kernels = frames, n_s, n_t, groups, kernels
        self.openstl = openstl
        self.net = nn.ModuleDict()
        self.strides = [1 + index % 2 for index in range(n_s)]
        for index, stride in enumerate(self.strides):
            convolution = nn.Conv2d(channels[0] if index == 0 else spatial, spatial, 3, stride, 1)
            self._conv_sc(f"enc.enc.{index}", convolution, spatial)
        for index, stride in enumerate(reversed(self.strides)):
            last = index == n_s - 1
            entering = 2 * spatial if last and not openstl else spatial
            if stride == 1:
                convolution = nn.Conv2d(entering, spatial, 3, 1, 1)
            elif openstl:
                convolution = nn.Sequential(nn.Conv2d(entering, 4 * spatial, 3, 1, 1), nn.PixelShuffle(2))
            else:
                convolution = nn.ConvTranspose2d(entering, spatial, 3, 2, 1, output_padding=1)
            self._conv_sc(f"dec.dec.{index}", convolution, spatial)
        layer(self.net, "dec.readout", nn.Conv2d(spatial, channels[1], 1))
        outer = frames * spatial
        for index in range(n_t):
            self._inception(f"hid.enc.{index}", outer if index == 0 else translator, translator, translator)
            entering = translator if index == 0 else 2 * translator
            self._inception(f"hid.dec.{index}", entering, translator, outer if index == n_t - 1 else translator)
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.3)

    def _conv_sc(self, name: str, convolution: nn.Module, channels: int) -> None:
        layer(self.net, f"{name}.conv.conv", convolution)
        layer(self.net, f"{name}.conv.norm", nn.GroupNorm(2, channels))

    def _inception(self, name: str, entering: int, translator: int, leaving: int) -> None:
        middle = translator // 2
        groups = self.groups if middle % self.groups == 0 else 1
        layer(self.net, f"{name}.conv1", nn.Conv2d(entering, middle, 1))
        for index, kernel in enumerate(self.kernels):
            convolution = nn.Conv2d(middle, leaving, kernel, padding=kernel // 2, groups=groups)
            layer(self.net, f"{name}.layers.{index}.conv", convolution)
            layer(self.net, f"{name}.layers.{index}.norm", nn.GroupNorm(groups, leaving))

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        return {prefix + name: value.clone() for name, value in self.net.state_dict().items()}

    @torch.no_grad()
    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        """`[B, T, C, H, W]` to the same with the output's channels."""
        batch, frames = video.shape[:2]
        hidden = video.flatten(0, 1)
        first = None
        for index in range(self.n_s):
            hidden = self._run_conv_sc(f"enc.enc.{index}", hidden)
            first = hidden if first is None else first
        sizes = hidden.shape[1:]
        hidden = self.translate(hidden.reshape(batch, frames * sizes[0], *sizes[1:]))
        hidden = hidden.reshape(batch * frames, *sizes)
        for index in range(self.n_s - 1):
            hidden = self._run_conv_sc(f"dec.dec.{index}", hidden)
        joined = hidden + first if self.openstl else torch.cat([hidden, first], dim=1)
        hidden = self._run_conv_sc(f"dec.dec.{self.n_s - 1}", joined)
        output = self.net["dec"]["readout"](hidden)
        return output.reshape(batch, frames, *output.shape[1:])

    @torch.no_grad()
    def translate(self, hidden: torch.Tensor) -> torch.Tensor:
        skips = []
        for index in range(self.n_t):
            hidden = self._run_inception(f"hid.enc.{index}", hidden)
            skips.append(hidden)
        hidden = self._run_inception("hid.dec.0", hidden)
        for index in range(1, self.n_t):
            joined = torch.cat([hidden, skips[self.n_t - 1 - index]], dim=1)
            hidden = self._run_inception(f"hid.dec.{index}", joined)
        return hidden

    def _run_conv_sc(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        module = self.net.get_submodule(f"{name}.conv")
        hidden = module["norm"](module["conv"](hidden))
        return F.silu(hidden) if self.openstl else F.leaky_relu(hidden, 0.2)

    def _run_inception(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        module = self.net.get_submodule(name)
        hidden = module["conv1"](hidden)
        branches = module["layers"].values()
        return sum(F.leaky_relu(branch["norm"](branch["conv"](hidden)), 0.2) for branch in branches)
