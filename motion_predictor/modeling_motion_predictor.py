"""SimVP as the motion predictor of DynaDrag (arXiv 2601.00542, Sec. 3.2.1 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import LogRecord
from typing import Any, ClassVar, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, logging
from torch import nn
from torch.nn.functional import interpolate

from .choices import DELTA_CONVENTIONS, DELTA_PAINTS, FLOW_UNITS, HORIZONS
from .common.checks import check_choice, check_number, check_whole_number, got
from .common.travelling import TravellingMixin
from .model_card import motion_predictor_card_text
from .network_input import PAPERS_CHANNELS, input_channels, network_input, unit_of_flow
from .points import check_inside, check_point_pairs, scale_points

STEPS_OF_A_WAY = 10  # with a unit, a step is answered in so many parts of it
LOGARITHM_OF_DEVIATION = (-6.0, 3.0)  # of its size in units: what a likelihood may not run away to


@dataclass
class MotionPredictorOutput(BaseOutput):
    """
    Output of [`MotionPredictorModel`].

    Flows are in pixels, u to the right, v down. Deviations are those of a likelihood: the scale b of a Laplace
    distribution of the error, whose expected length is 2 b.

    Args:
        flow (`torch.Tensor` of shape `(batch_size, 2, height, width)`): How far each pixel moves in one step.
        deviation (`torch.Tensor` of shape `(batch_size, 1, height, width)`, *optional*):
            How far that may be wrong, in pixels, of a network with `predicts_deviation`.
        total_flow (`torch.Tensor` of shape `(batch_size, 2, height, width)`, *optional*):
            How far each pixel moves on the whole way, of a network with the horizon `"total"`.
        total_deviation (`torch.Tensor` of shape `(batch_size, 1, height, width)`, *optional*):
            How far that may be wrong.
    """

    flow: torch.Tensor
    deviation: torch.Tensor | None = None
    total_flow: torch.Tensor | None = None
    total_deviation: torch.Tensor | None = None


class ConvBlock(nn.Module):
    """3x3 convolution, GroupNorm, LeakyReLU; with stride 2 it halves the size, or doubles it if `transposed`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, transposed: bool = False):
        super().__init__()
        convolution = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = convolution(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(2, out_channels)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, hidden_states: torch.Tensor, output_size: torch.Size | None = None) -> torch.Tensor:
        if output_size is None:
            hidden_states = self.conv(hidden_states)
        else:
            hidden_states = self.conv(hidden_states, output_size=output_size)
        return self.act(self.norm(hidden_states))


class GroupConvBlock(nn.Module):
    """Grouped convolution, GroupNorm, LeakyReLU; in one group where the channels cannot be divided."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int):
        super().__init__()
        groups = groups if in_channels % groups == 0 else 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(hidden_states)))


class InceptionBlock(nn.Module):
    """1x1 bottleneck, then the sum of grouped convolutions of several kernel sizes."""

    def __init__(
        self, in_channels: int, bottleneck_channels: int, out_channels: int, kernels: tuple[int, ...], groups: int
    ):
        super().__init__()
        self.bottleneck = nn.Conv2d(in_channels, bottleneck_channels, kernel_size=1)
        self.branches = nn.ModuleList(
            [GroupConvBlock(bottleneck_channels, out_channels, kernel, groups) for kernel in kernels]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.bottleneck(hidden_states)
        output = self.branches[0](hidden_states)
        for branch in self.branches[1:]:
            output = output + branch(hidden_states)
        return output


class MotionEncoder(nn.Module):
    """Convolutions of stride 1, 2, 1, 2, ...: hidden states, the first block's output, and the sizes on the way."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, in_channels: int, hidden_channels: int, num_blocks: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList(
            [
                ConvBlock(in_channels if index == 0 else hidden_channels, hidden_channels, stride=1 + index % 2)
                for index in range(num_blocks)
            ]
        )

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Size]]:
        outputs, sizes = [], []
        hidden_states = sample
        for block in self.blocks:
            sizes.append(hidden_states.shape[-2:])
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
            outputs.append(hidden_states)
        return hidden_states, outputs[0], sizes


class MotionTranslator(nn.Module):
    """Inception blocks down and up again, each on the way up seeing its mirror's output on the way down."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, in_channels: int, hidden_channels: int, num_blocks: int, kernels: tuple[int, ...], groups: int):
        super().__init__()
        self.gradient_checkpointing = False
        bottleneck_channels = hidden_channels // 2
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        for index in range(num_blocks):
            down_channels = in_channels if index == 0 else hidden_channels
            up_channels = hidden_channels if index == 0 else 2 * hidden_channels
            out_channels = in_channels if index == num_blocks - 1 else hidden_channels
            self.down_blocks.append(
                InceptionBlock(down_channels, bottleneck_channels, hidden_channels, kernels, groups)
            )
            self.up_blocks.append(InceptionBlock(up_channels, bottleneck_channels, out_channels, kernels, groups))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for block in self.down_blocks:
            hidden_states = self._run(block, hidden_states)
            skips.append(hidden_states)
        skips.pop()  # the deepest output is the hidden state itself
        hidden_states = self._run(self.up_blocks[0], hidden_states)
        for block in self.up_blocks[1:]:
            hidden_states = self._run(block, torch.cat([hidden_states, skips.pop()], dim=1))
        return hidden_states

    def _run(self, block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden_states)
        return block(hidden_states)


class MotionDecoder(nn.Module):
    """The encoder's mirror; its last block also sees the encoder's first output, at full size."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, hidden_channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList(
            [
                ConvBlock(
                    hidden_channels if index > 0 else 2 * hidden_channels,
                    hidden_channels,
                    stride=1 + index % 2,
                    transposed=index % 2 == 1,
                )
                for index in reversed(range(num_blocks))
            ]
        )
        self.readout = nn.Conv2d(hidden_channels, out_channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor, sizes: list[torch.Size]) -> torch.Tensor:
        for index, (block, size) in enumerate(zip(self.blocks, reversed(sizes), strict=True)):
            if index == len(self.blocks) - 1:
                hidden_states = torch.cat([hidden_states, skip], dim=1)
            # The encoder's sizes tell an odd one from the even one above it, which halving has merged.
            output_size = size if isinstance(block.conv, nn.ConvTranspose2d) else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, output_size)
            else:
                hidden_states = block(hidden_states, output_size)
        return self.readout(hidden_states)


class MotionPredictorModel(TravellingMixin, ModelMixin, ConfigMixin):
    r"""
    The motion predictor of [DynaDrag](https://huggingface.co/papers/2601.00542): from a picture with handles and
    targets to a flow field, whose values at the handles are their next steps.

    The network is SimVP (CVPR 2022) for a single frame: a convolutional encoder, a translator of Inception blocks with
    skips, and a decoder. It accepts any height and width. The default configuration is the paper's (13.82 M
    parameters).

    This model inherits from [`ModelMixin`]. Check the superclass documentation for its generic methods implemented for
    all models (such as downloading or saving).

    Parameters:
        in_channels (`int`, *optional*, defaults to 6):
            Channels of the input: RGB, delta map and heatmap; one more each for a mask and for a unit of its own.
        out_channels (`int`, *optional*, defaults to 2): Channels of a flow: u to the right, v down.
        hidden_channels_spatial (`int`, *optional*, defaults to 64): Channels of encoder and decoder; even.
        hidden_channels_translator (`int`, *optional*, defaults to 256): Channels of the translator; even.
        num_spatial_blocks (`int`, *optional*, defaults to 4):
            Blocks of the encoder, and of the decoder; their strides are 1, 2, 1, 2, ...
        num_translator_blocks (`int`, *optional*, defaults to 8):
            Inception blocks on the way down, and on the way up, of the translator; at least 2.
        inception_kernels (`tuple[int]`, *optional*, defaults to `(3, 5, 7, 11)`): Kernel sizes; odd.
        inception_groups (`int`, *optional*, defaults to 8):
            Groups of the translator's convolutions; must divide the channels of encoder and translator. Where it does
            not divide half of the translator's, these convolutions are not grouped.
        sample_size (`int`, *optional*, defaults to 256):
            The short side, in pixels, of the pictures that the network was trained on: `predict_flow` resizes to it.
            `None` runs the network at the picture's own size.
        heatmap_radius (`float`, *optional*, defaults to 4.0): Radius of the discs round handles, in pixels.
        delta_paint (`str`, *optional*, defaults to `"pixel"`):
            Whether a delta is painted on the handle's `"pixel"` (the paper), on its whole `"disc"`, or `"spread"` over
            the picture by a spline that is pinned where nothing may change.
        delta_convention (`str`, *optional*, defaults to `"handle_minus_target"`):
            The sign of the delta map: `"handle_minus_target"` (the paper) or `"target_minus_handle"`.
        delta_scale (`float`, *optional*, defaults to 1.0): Factor on the deltas, in pixels, at the input.
        flow_scale (`float`, *optional*, defaults to 1.0): Factor on the network's output that gives pixels.
        straight_share (`float`, *optional*, defaults to 0.0):
            Where a delta is painted, the flow starts from this share of the displacement and the network adds to
            it; an untrained network then predicts exactly this straight step, and on the whole way all of it. 0 is
            the paper; others need `delta_paint="disc"` or `"spread"`, as handles between pixels would see little of
            a single one.
        flow_unit (`str`, *optional*, defaults to `"pixel"`):
            What the network computes in: `"pixel"` (the paper), or `"displacement"`, the root mean square of the
            displacements, which makes short and long ways alike; then a channel says how long it is.
        takes_mask (`bool`, *optional*, defaults to `False`): Whether it is shown what may change, in a channel.
        takes_rigid (`bool`, *optional*, defaults to `False`):
            Whether it is shown the rigid motion that fits the handles, in two channels, and answers with the share of
            it that goes into the flow in place of what it starts from.
        horizons (`tuple[str]`, *optional*, defaults to `("step",)`):
            What it predicts: the next `"step"` (the paper), and after it `"total"`, the whole way in one shot.
        predicts_deviation (`bool`, *optional*, defaults to `False`): Whether it says how wrong it may be, as well.
        step_share (`float`, *optional*, defaults to 0.0):
            The next step is this share of the whole way that it predicts, and not an answer of its own. 0 is the
            paper; others need the horizon `"total"`.

    Example:

    ```py
    >>> import torch
    >>> from motion_predictor import MotionPredictorModel

    >>> model = MotionPredictorModel(
    ...     hidden_channels_spatial=8, hidden_channels_translator=16, num_translator_blocks=2, sample_size=64
    ... )
    >>> image = torch.rand(1, 3, 96, 128)  # in [0, 1]
    >>> handles, targets = torch.tensor([[40.0, 30.0]]), torch.tensor([[60.0, 30.0]])
    >>> flow = model.predict_flow(image, handles, targets)  # untrained: its values mean nothing yet
    >>> flow.shape
    torch.Size([1, 2, 96, 128])

    ```
    """

    _travels_as = "modeling_motion_predictor"
    _auto_class = "AutoModel"
    _supports_gradient_checkpointing = True
    # These join tensors inline, which a device map must keep on one device.
    _no_split_modules: ClassVar = ["MotionEncoder", "MotionTranslator", "MotionDecoder"]
    _repeated_blocks: ClassVar = ["InceptionBlock"]
    _skip_layerwise_casting_patterns: ClassVar = ["norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 2,
        hidden_channels_spatial: int = 64,
        hidden_channels_translator: int = 256,
        num_spatial_blocks: int = 4,
        num_translator_blocks: int = 8,
        inception_kernels: tuple[int, ...] = (3, 5, 7, 11),
        inception_groups: int = 8,
        sample_size: int | None = 256,
        heatmap_radius: float = 4.0,
        delta_paint: str = "pixel",
        delta_convention: str = "handle_minus_target",
        delta_scale: float = 1.0,
        flow_scale: float = 1.0,
        straight_share: float = 0.0,
        flow_unit: str = "pixel",
        takes_mask: bool = False,
        takes_rigid: bool = False,
        horizons: tuple[str, ...] = ("step",),
        predicts_deviation: bool = False,
        step_share: float = 0.0,
    ):
        super().__init__()
        _check_channels(
            in_channels, out_channels, hidden_channels_spatial, hidden_channels_translator, inception_groups
        )
        _check_blocks(num_spatial_blocks, num_translator_blocks, inception_kernels)
        _check_conditioning(sample_size, heatmap_radius, delta_paint, delta_convention, delta_scale, flow_scale)
        _check_straight_share(straight_share, delta_paint, takes_rigid)
        _check_horizons(tuple(horizons), step_share)
        check_choice("flow_unit", flow_unit, FLOW_UNITS)
        wanted = input_channels(takes_mask, flow_unit, takes_rigid)
        if in_channels != wanted:
            raise ValueError(
                f"`in_channels` must be {wanted} with `takes_mask` {takes_mask}, `takes_rigid` {takes_rigid} and "
                f"`flow_unit` {flow_unit!r}, got {in_channels}."
            )

        self.encoder = MotionEncoder(in_channels, hidden_channels_spatial, num_spatial_blocks)
        self.translator = MotionTranslator(
            hidden_channels_spatial,
            hidden_channels_translator,
            num_translator_blocks,
            tuple(inception_kernels),
            inception_groups,
        )
        answers = (1 if step_share else len(horizons)) * (out_channels + bool(takes_rigid) + bool(predicts_deviation))
        self.decoder = MotionDecoder(hidden_channels_spatial, answers, num_spatial_blocks)
        if straight_share:
            for parameter in self.decoder.readout.parameters():
                nn.init.zeros_(parameter)

    @property
    def takes_mask(self) -> bool:
        """Whether it looks at what may change, and at points that stay."""
        return bool(self.config["takes_mask"])

    @property
    def horizons(self) -> tuple[str, ...]:
        """What it predicts: `"step"`, and perhaps `"total"`."""
        return tuple(self.config["horizons"])

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> MotionPredictorOutput | tuple[torch.Tensor]:
        r"""
        The [`MotionPredictorModel`] forward method.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
                RGB in [0, 1], delta map, heatmap, and what options add, as `network_input` puts them together.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`MotionPredictorOutput`] or a plain tuple.

        Returns:
            [`MotionPredictorOutput`] or `tuple`: in pixels of the network's resolution.
        """
        in_channels = self.config["in_channels"]
        if sample.ndim != 4 or sample.shape[1] != in_channels:
            raise ValueError(f"`sample` must be of shape (batch, {in_channels}, height, width), got {got(sample)}.")
        hidden_states, skip, sizes = self.encoder(sample)
        hidden_states = self.translator(hidden_states)
        answer = self.decoder(hidden_states, skip, sizes)
        if self.config["step_share"]:
            output = self._share_of_the_way(answer, sample)
        else:
            answers = answer.chunk(len(self.horizons), dim=1)
            way = self._total(answers[1], sample) if len(answers) > 1 else (None, None)
            output = MotionPredictorOutput(*self._step(answers[0], sample), *way)
        return output if return_dict else output.to_tuple()

    def _share_of_the_way(self, answer: torch.Tensor, sample: torch.Tensor) -> MotionPredictorOutput:
        """The whole way, and a share of it as the next step: both as sure."""
        share = self.config["step_share"]
        flow, deviation = self._total(answer, sample)
        return MotionPredictorOutput(share * flow, None if deviation is None else share * deviation, flow, deviation)

    def _step(self, answer: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next step and its deviation; with a unit, the network answers in tenths of it."""
        unit = unit_of_flow(self.config, sample)
        unit = unit / STEPS_OF_A_WAY if self.config["flow_unit"] == "displacement" else unit
        return self._in_pixels(answer, sample, unit, self.config["straight_share"])

    def _total(self, answer: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The whole way and its deviation."""
        share = 1.0 if self.config["straight_share"] else 0.0
        return self._in_pixels(answer, sample, unit_of_flow(self.config, sample), share)

    def _in_pixels(
        self, answer: torch.Tensor, sample: torch.Tensor, unit: torch.Tensor, share: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out_channels = self.config["out_channels"]
        flow = answer[:, :out_channels] * self.config["flow_scale"]
        if self.config["flow_unit"] == "displacement":
            flow = flow * unit
        begun = share * self._painted_displacement(sample) if share else torch.zeros_like(flow)
        if self.config["takes_rigid"]:
            rigid = sample[:, PAPERS_CHANNELS : PAPERS_CHANNELS + 2] * unit_of_flow(self.config, sample)
            begun = torch.lerp(begun, share * rigid, answer[:, out_channels : out_channels + 1])
        flow = flow + begun
        if not self.config["predicts_deviation"]:
            return flow, None
        return flow, answer[:, -1:].clamp(*LOGARITHM_OF_DEVIATION).exp() * unit

    @torch.no_grad()
    def predict(
        self,
        image: torch.Tensor,
        handles: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
    ) -> MotionPredictorOutput:
        r"""
        Predict the motion of every pixel of a picture, given where its handles are to go.

        The picture is resized so that its short side is `sample_size`, the points with it, and the flow is carried
        back; the network runs in its own precision and on its own device.

        Args:
            image (`torch.Tensor` of shape `(batch_size, 3, height, width)`): RGB in [0, 1].
            handles (`torch.Tensor` of shape `(batch_size, num_points, 2)`, or `(num_points, 2)` for one picture):
                (x, y) in pixels of `image`, integers at pixel centres, inside the picture.
            targets (`torch.Tensor` of the shape of `handles`): where the handles are to go; same unit.
            valid (`torch.Tensor` of shape `(batch_size, num_points)`, *optional*):
                bool, False for the padding of a batch whose pictures have different numbers of points.
            mask (`torch.Tensor` of shape `(batch_size, 1, height, width)`, *optional*):
                1 where the picture may change; by default, and where it is empty, everywhere. A network without
                `takes_mask` does not look at it.

        Returns:
            [`MotionPredictorOutput`]: at the size and in pixels of `image`, float32, on its device.
        """
        _check_image(image)
        if handles.ndim == 2 and image.shape[0] == 1:
            handles, targets = handles[None], targets[None] if targets.ndim == 2 else targets
            valid = valid[None] if valid is not None and valid.ndim == 1 else valid
        check_point_pairs(handles, targets, valid)
        if handles.shape[0] != image.shape[0]:
            raise ValueError(
                f"`handles` must be of shape ({image.shape[0]}, points, 2), as `image` holds {image.shape[0]} "
                f"pictures, got {got(handles)}."
            )
        image_size = (image.shape[2], image.shape[3])
        check_inside("handles", handles, image_size, valid)
        if mask is not None and mask.shape != (len(image), 1, *image_size):
            raise ValueError(f"`mask` must be of shape {(len(image), 1, *image_size)}, got {got(mask)}.")

        size = self._network_size(*image_size)
        sample, _ = network_input(
            self.config,
            _resize(image.float(), size),
            scale_points(handles, image_size, size),
            scale_points(targets, image_size, size),
            valid,
            None if mask is None else _resized_mask(mask.to(image.device), size),
        )
        device = image.device if self.device.type == "meta" else self.device  # meta: offloaded layer by layer
        # Grouped convolutions take half the time on a CPU in this layout.
        sample = sample.to(device=device, dtype=self.dtype, memory_format=torch.channels_last)
        output = self(sample)
        if not torch.isfinite(output.flow).all():
            raise FloatingPointError(
                f"The predicted flow is not finite (network in {self.dtype}): are its weights sound?"
            )
        return MotionPredictorOutput(**{name: _carried(value, image) for name, value in output.items()})

    def predict_flow(
        self,
        image: torch.Tensor,
        handles: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        horizon: str = "step",
    ) -> torch.Tensor:
        r"""
        Predict the next step of every pixel of a picture, or its whole way, given where its handles are to go.

        Args:
            image (`torch.Tensor` of shape `(batch_size, 3, height, width)`): as of `predict`.
            handles (`torch.Tensor` of shape `(batch_size, num_points, 2)`, or `(num_points, 2)` for one picture):
                as of `predict`.
            targets (`torch.Tensor` of the shape of `handles`): as of `predict`.
            valid (`torch.Tensor` of shape `(batch_size, num_points)`, *optional*): as of `predict`.
            mask (`torch.Tensor` of shape `(batch_size, 1, height, width)`, *optional*): as of `predict`.
            horizon (`str`, *optional*, defaults to `"step"`): or `"total"`, of a network that has it.

        Returns:
            `torch.Tensor` of shape `(batch_size, 2, height, width)`: flow in pixels of `image` (u to the right, v
            down), float32, on the device of `image`. `sample_flow` of `points` reads it at the handles.
        """
        check_choice("horizon", horizon, self.horizons)
        output = self.predict(image, handles, targets, valid, mask=mask)
        flow: torch.Tensor = output[0] if horizon == "step" else output["total_flow"]
        return flow

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast the network, as [`torch.nn.Module.to`] does.

        diffusers warns of modules that should be kept in float32, also where there are none, as here.
        """
        logger = logging.get_logger("diffusers.models.modeling_utils")
        logger.addFilter(_says_something)
        try:
            return super().to(*args, **kwargs)
        finally:
            logger.removeFilter(_says_something)

    def _card_text(self, repo_id: str, license: str | None) -> str:
        return motion_predictor_card_text(self, self.config["sample_size"], repo_id, license)

    def _painted_displacement(self, sample: torch.Tensor) -> torch.Tensor:
        """The displacement to the target in pixels where the delta map holds one, `[B, 2, H, W]`; zero elsewhere."""
        sign = -1 if self.config["delta_convention"] == "handle_minus_target" else 1
        return sample[:, 3:5] * unit_of_flow(self.config, sample) * (sign / self.config["delta_scale"])

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        if self.config["sample_size"] is None:
            return height, width
        scale = self.config["sample_size"] / min(height, width)
        return round(height * scale), round(width * scale)


def _says_something(record: LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return interpolate(images, size=size, mode="bilinear", antialias=True)


def _resized_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return (interpolate(mask.float(), size=size, mode="area") > 0.5).float()


def _carried(motion: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Flow `(batch, 2, h, w)` or deviation `(batch, 1, h, w)` at the size and in pixels of a picture."""
    motion = motion.to(device=image.device, dtype=torch.float32)
    factors = motion.new_tensor((image.shape[3] / motion.shape[3], image.shape[2] / motion.shape[2]))
    per_channel = factors if motion.shape[1] == 2 else factors.mean()[None]
    return _resize(motion, (image.shape[2], image.shape[3])) * per_channel[:, None, None]


def _check_image(image: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or min(image.shape) < 1:
        raise ValueError(f"`image` must be of shape (batch, 3, height, width), got {got(image)}.")
    if not image.is_floating_point():
        raise ValueError(f"`image` must be of a floating-point dtype, got {image.dtype}.")
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`image` must have values from 0 to 1, got {low:.3f} to {high:.3f}.")


def _check_channels(in_channels: int, out_channels: int, spatial: int, translator: int, groups: int) -> None:
    check_whole_number("in_channels", in_channels, least=1)
    check_whole_number("out_channels", out_channels, least=1)
    check_whole_number("inception_groups", groups, least=1)
    for name, channels in (("hidden_channels_spatial", spatial), ("hidden_channels_translator", translator)):
        check_whole_number(name, channels, least=2)
        if channels % 2 or channels % groups:
            raise ValueError(f"`{name}` must be an even multiple of `inception_groups`, {groups}, got {channels}.")


def _check_blocks(num_spatial_blocks: int, num_translator_blocks: int, kernels: tuple[int, ...]) -> None:
    check_whole_number("num_spatial_blocks", num_spatial_blocks, least=1)
    check_whole_number("num_translator_blocks", num_translator_blocks, least=2)
    if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise ValueError(f"`inception_kernels` must be one or more odd, positive numbers, got {got(tuple(kernels))}.")


def _check_conditioning(
    sample_size: int | None,
    heatmap_radius: float,
    delta_paint: str,
    delta_convention: str,
    delta_scale: float,
    flow_scale: float,
) -> None:
    if sample_size is not None:
        check_whole_number("sample_size", sample_size, least=1)
    check_number("heatmap_radius", heatmap_radius, least=0)
    check_choice("delta_paint", delta_paint, DELTA_PAINTS)
    check_choice("delta_convention", delta_convention, DELTA_CONVENTIONS)
    check_number("delta_scale", delta_scale, above=0)
    check_number("flow_scale", flow_scale, above=0)


def _check_horizons(horizons: tuple[str, ...], step_share: float) -> None:
    if horizons not in (HORIZONS[:1], HORIZONS):
        raise ValueError(f"`horizons` must be {HORIZONS[:1]} or {HORIZONS}, got {got(horizons)}.")
    check_number("step_share", step_share, least=0, most=1)
    if step_share and len(horizons) == 1:
        raise ValueError(f"`step_share` must be 0 without the horizon 'total', got {step_share}.")


def _check_straight_share(straight_share: float, delta_paint: str, takes_rigid: bool) -> None:
    check_number("straight_share", straight_share, least=0, most=1)
    if takes_rigid and not straight_share:
        raise ValueError("`straight_share` must be above 0 with `takes_rigid`, which takes its place, got 0.")
    if straight_share and delta_paint == "pixel":
        raise ValueError(
            f"`straight_share` must be 0 unless `delta_paint` is 'disc' or 'spread', got {straight_share} and "
            f"{delta_paint!r}."
        )
