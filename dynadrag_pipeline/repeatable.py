"""What makes an edit on a GPU come out the same each time: gradients by products, not by sums in whatever order.

Kernels of a GPU that scatter gradients (bilinear sampling and resizing, attention) add them up by atomic operations,
in the order in which threads happen to arrive; rounding then differs from run to run, and Adam, which divides by a
gradient's size, makes much of little. A product of matrices adds in one order. On the CPU torch's own functions do so,
and are kept.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch.overrides import TorchFunctionMode

SCORES_AT_ONCE = 2**24
"""Attention scores that a backward pass holds at a time: one head of 4096 tokens."""


def adds_in_any_order(device: torch.device) -> bool:
    """Whether a device's kernels add up scattered gradients in an order of their own."""
    return device.type != "cpu"


# --- bilinear sampling: every weight is 1 minus a distance, or 0, so that rows and columns are two small products ---


def resize_bilinear(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize `(batch, channels, h, w)` to `(batch, channels, *size)`, as `interpolate` without `align_corners`.

    Example:
        >>> resize_bilinear(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    if adds_in_any_order(maps.device):
        return resized_by_products(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resized_by_products(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[`resize_bilinear`] by a product for the columns and one for the rows."""
    rows, columns = (
        hat_weights((torch.arange(new, device=maps.device, dtype=maps.dtype) + 0.5) * (old / new) - 0.5, old)
        for new, old in zip(size, maps.shape[-2:], strict=True)
    )
    return rows @ (maps @ columns.T)


def sample_bilinear(maps: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Bilinear samples of a map at grids of places: each of a grid's rows crossed with each of its columns.

    Args:
        maps (`torch.Tensor` of shape `(1, channels, height, width)`): of which the edge is repeated outwards.
        x (`torch.Tensor` of shape `(grids, columns)`): in cells; whole numbers are centres.
        y (`torch.Tensor` of shape `(grids, rows)`): the same downwards.

    Returns:
        `torch.Tensor` of shape `(grids, channels, rows, columns)`.

    Example:
        >>> column_numbers = torch.arange(4.0).expand(1, 1, 3, 4)
        >>> sample_bilinear(column_numbers, torch.tensor([[0.5, 9.0]]), torch.tensor([[1.0]]))
        tensor([[[[0.5000, 3.0000]]]])
    """
    if adds_in_any_order(maps.device):
        return sampled_by_products(maps, x, y)
    height, width = maps.shape[-2:]
    cells = torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    scale = torch.tensor([width, height], device=x.device, dtype=x.dtype)
    places = (2 * cells + 1) / scale - 1  # [grids, rows, columns, 2]
    samples = F.grid_sample(
        maps, places.flatten(0, 1)[None].to(maps.dtype), padding_mode="border", align_corners=False
    )
    return samples[0].unflatten(1, (len(x), y.shape[1])).transpose(0, 1)


def sampled_by_products(maps: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[`sample_bilinear`] by a product for all columns and one for each grid's rows."""
    _, channels, height, width = maps.shape
    (grids, columns), rows = x.shape, y.shape[1]
    of_columns = hat_weights(x.flatten().to(maps.dtype), width)  # [grids * columns, width]
    across = (maps[0].flatten(0, 1) @ of_columns.T).unflatten(0, (channels, height)).unflatten(-1, (grids, columns))
    across = across.permute(2, 1, 0, 3).reshape(grids, height, channels * columns)
    of_rows = hat_weights(y.to(maps.dtype), height)  # [grids, rows, height]
    return (of_rows @ across).reshape(grids, rows, channels, columns).transpose(1, 2)


def hat_weights(places: torch.Tensor, cells: int) -> torch.Tensor:
    """`(..., cells)`: the weight of each cell of a line in a linear sample at each of `places` `(...)`.

    Example:
        >>> hat_weights(torch.tensor([0.25, -3.0]), 3)
        tensor([[0.7500, 0.2500, 0.0000],
                [1.0000, 0.0000, 0.0000]])
    """
    centres = torch.arange(cells, device=places.device, dtype=places.dtype)
    return (1 - (places.clamp(0, cells - 1)[..., None] - centres).abs()).clamp(min=0)


# --- attention: forward as it is, backward by products ---


class AttentionByProducts(torch.autograd.Function):
    """Attention by whatever kernel torch chooses, whose gradients are products, a few heads at a time.

    The scores are computed again rather than kept, as in the kernels whose place it takes.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        heads = max(1, SCORES_AT_ONCE // (query.shape[-2] * key.shape[-2]))
        given = (query, key, value, gradient.to(query.dtype))  # autocast may have cast what came out
        split = (each.flatten(0, -3).split(heads) for each in given)
        parts = [_attention_gradients(*some, scale=ctx.scale) for some in zip(*split, strict=True)]
        joined = (torch.cat(each) for each in zip(*parts, strict=True))
        wanted = zip(joined, (query, key, value), ctx.needs_input_grad[:3], strict=True)
        return *(each.reshape(of.shape) if needed else None for each, of, needed in wanted), None


def _attention_gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients to query, key and value of some heads, `(heads, tokens, width)` each."""
    scaled = query * scale
    shares = torch.softmax(scaled @ key.transpose(-2, -1), dim=-1)
    of_shares = gradient @ value.transpose(-2, -1)
    of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
    return (of_scores @ key) * scale, of_scores.transpose(-2, -1) @ scaled, shares.transpose(-2, -1) @ gradient


def attention_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention`, whose gradients are products where they are wanted and it is a plain one."""
    is_plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    wants_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    if not (is_plain and wants_gradients and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]):
        more = {"enable_gqa": True} if enable_gqa else {}
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    return AttentionByProducts.apply(query, key, value, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)


class _AttentionExchanged(TorchFunctionMode):
    """Context in which torch's attention is [`attention_by_products`]."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        exchanged = attention_by_products if func is F.scaled_dot_product_attention else func
        return exchanged(*args, **(kwargs or {}))


class RepeatableAttention:
    """An attention processor round the one that was installed, whose gradients are the same each time.

    It goes where the processor goes, so that what gradient checkpointing runs again is what was run.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        with _AttentionExchanged():
            return self.inner(*args, **kwargs)


@functools.cache
def repeatable(processor: type) -> type[RepeatableAttention]:
    """[`RepeatableAttention`] for processors of a class, with its signature: `Attention` passes on what that names."""

    def __call__(self: RepeatableAttention, *args: Any, **kwargs: Any) -> torch.Tensor:
        return RepeatableAttention.__call__(self, *args, **kwargs)

    setattr(__call__, "__signature__", inspect.signature(processor.__call__))  # noqa: B010 - types know of none
    return type(f"Repeatable{processor.__name__}", (RepeatableAttention,), {"__call__": __call__})


@contextmanager
def repeatable_attention(unet: UNet2DConditionModel, device: torch.device) -> Iterator[None]:
    """Context in which gradients through a UNet's attention are the same each time, on whatever device it runs.

    Blocks that are compiled are left alone: the compiler has chosen their kernels.
    """
    compiled = any(getattr(each, "_compiled_call_impl", None) is not None for each in unet.modules())
    if compiled or not adds_in_any_order(device):
        yield
        return
    before = unet.attn_processors
    try:
        processors: dict[str, Any] = dict(before)
        unet.set_attn_processor({name: repeatable(each.__class__)(each) for name, each in processors.items()})
        yield
    finally:
        unet.set_attn_processor(before)


# --- convolutions ---

_CUDNN = threading.Lock()
_cudnn_before: list[tuple[bool, bool]] = []  # one entry for each edit at work; the first holds what the user chose


@contextmanager
def repeatable_convolutions(device: torch.device) -> Iterator[None]:
    """Context in which cuDNN takes none of its algorithms that add in any order, nor the one that a race decides.

    cuDNN's choice is the whole process's: the last edit that ends puts it back.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with _CUDNN:
        _cudnn_before.append((cudnn.deterministic, cudnn.benchmark))
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        with _CUDNN:
            before = _cudnn_before[0]
            _cudnn_before.pop()
            if not _cudnn_before:
                cudnn.deterministic, cudnn.benchmark = before
