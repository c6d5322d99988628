"""The torch form of the Relax operators that are layers of networks; reference_ops has all others.

What args, attrs and call are, and what NotImplementedError says, is told there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

Tensor = torch.Tensor
Operator = Callable[[list[Any], Any, Any], Any]


def _pad_pairs(padding: Sequence[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(p) for p in padding)
    return left, right, top, bottom


def _conv2d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, w = args
    integer = not x.dtype.is_floating_point
    if integer:
        x, w = x.to(torch.float64), w.to(torch.float64)
    nhwc = str(attrs.data_layout) == "NHWC"
    if nhwc:
        x, w = x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1)
    x = F.pad(x, _pad_pairs(attrs.padding))
    out = F.conv2d(x, w, None, tuple(attrs.strides), 0, tuple(attrs.dilation), int(attrs.groups))
    out = out.permute(0, 2, 3, 1) if nhwc else out
    return out.to(torch.int64) if integer else out


def _conv1d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NCW", "OIW"):
        raise NotImplementedError(f"conv1d of layout {attrs.data_layout}, {attrs.kernel_layout}")
    x = F.pad(args[0], [int(p) for p in attrs.padding])
    strides, dilation = ([int(n) for n in numbers] for numbers in (attrs.strides, attrs.dilation))
    return F.conv1d(x, args[1], None, strides, 0, dilation, int(attrs.groups))


def _conv2d_transpose(args: list[Any], attrs: Any, call: Any) -> Tensor:
    top, left, bottom, right = (int(p) for p in attrs.padding)
    if (top, left) != (bottom, right):
        raise NotImplementedError("conv2d_transpose with unequal padding")
    return F.conv_transpose2d(
        args[0],
        args[1],
        None,
        tuple(attrs.strides),
        (top, left),
        tuple(attrs.output_padding),
        int(attrs.groups),
        tuple(attrs.dilation),
    )


def _layer_norm(args: list[Any], attrs: Any, call: Any) -> Tensor:
    axes = [int(a) for a in attrs.axes]
    x, gamma, beta = args
    mean = x.mean(dim=axes, keepdim=True)
    variance = x.var(dim=axes, keepdim=True, unbiased=False)
    normal: Tensor = (x - mean) / torch.sqrt(variance + float(attrs.epsilon)) * gamma + beta
    return normal


def _instance_norm(args: list[Any], attrs: Any, call: Any) -> Tensor:
    x, gamma, beta = args
    axes = [int(a) for a in attrs.axes]
    shape = [1] * x.dim()
    shape[int(attrs.channel_axis)] = -1
    mean, variance = x.mean(dim=axes, keepdim=True), x.var(dim=axes, keepdim=True, unbiased=False)
    scaled = (x - mean) / torch.sqrt(variance + float(attrs.epsilon)) * gamma.view(shape)
    normal: Tensor = scaled + beta.view(shape)
    return normal


def _batch_norm(args: list[Any], attrs: Any, call: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, gamma, beta, mean, variance = args
    shape = [1] * x.dim()
    shape[int(attrs.axis)] = -1
    centred = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + float(attrs.epsilon))
    scaled = centred * gamma.view(shape) if attrs.scale else centred
    return (scaled + beta.view(shape) if attrs.center else scaled), mean, variance


def _attention(args: list[Any], attrs: Any, call: Any) -> Tensor:
    q, k, v = (Tensor.permute(a, 0, 2, 1, 3) for a in args[:3])
    if attrs.causal_mask is not None:
        raise NotImplementedError("attention with a causal mask")
    scale = q.shape[-1] ** -0.5 if attrs.scale is None else float(attrs.scale)
    scores = (q @ k.transpose(-1, -2)) * scale
    if len(args) == 4:
        scores = scores + args[3]
    return (scores.softmax(-1) @ v).permute(0, 2, 1, 3)


def _max_pool2d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    size, strides = tuple(attrs.pool_size), tuple(attrs.strides)
    if attrs.ceil_mode:
        raise NotImplementedError("max_pool2d with ceil_mode")
    x = args[0]
    fill = float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    padded = F.pad(x, _pad_pairs(attrs.padding), value=fill)
    return padded.unfold(2, size[0], strides[0]).unfold(3, size[1], strides[1]).amax(dim=(-1, -2))


def _avg_pool2d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    """Padded here: torch's own padding is the same on opposite sides and at most half of the window."""
    size, strides = tuple(map(int, attrs.pool_size)), tuple(map(int, attrs.strides))
    top, left, bottom, right = (int(p) for p in attrs.padding)
    whole = bool(attrs.count_include_pad)
    if attrs.ceil_mode:
        if (top, left) != (bottom, right) or 2 * top > size[0] or 2 * left > size[1]:
            raise NotImplementedError("avg_pool2d with ceil_mode and this padding")
        return F.avg_pool2d(args[0], size, strides, (top, left), True, whole)

    def sums(x: Tensor) -> Tensor:
        padded = F.pad(x, _pad_pairs(attrs.padding))
        return F.avg_pool2d(padded, size, strides, divisor_override=1)

    if whole:
        return sums(args[0]) / (size[0] * size[1])
    return sums(args[0]) / sums(torch.ones_like(args[0])).clamp(min=1)


def _adaptive_avg_pool2d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    size = args[0].shape[2:] if attrs.output_size is None else tuple(int(s) for s in attrs.output_size)
    return F.adaptive_avg_pool2d(args[0], tuple(size))


def _resize2d(args: list[Any], attrs: Any, call: Any) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic", "nearest_neighbor": "nearest"}[str(attrs.method)]
    transform = str(attrs.coordinate_transformation_mode)
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        raise NotImplementedError(f"resize2d with {transform}")
    if mode == "nearest":
        return F.interpolate(args[0], size=args[1], mode=mode)
    return F.interpolate(args[0], size=args[1], mode=mode, align_corners=transform == "align_corners")


LAYERS: dict[str, Operator] = {
    "nn.conv1d": _conv1d,
    "nn.conv2d": _conv2d,
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.layer_norm": _layer_norm,
    "nn.instance_norm": _instance_norm,
    "nn.batch_norm": _batch_norm,
    "nn.max_pool2d": _max_pool2d,
    "nn.avg_pool2d": _avg_pool2d,
    "nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "nn.attention": _attention,
    "nn.attention_bias": _attention,
    "image.resize2d": _resize2d,
}
