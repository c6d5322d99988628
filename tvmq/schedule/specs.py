"""What a composite's attributes and argument shapes ask of a kernel, whatever the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import Pooling
from tvmq.schedule.attention_spec import AttentionSpec
from tvmq.schedule.kernel import Shape
from tvmq.schedule.layer_norm import LayerNormSpec
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.schedule.pool import PoolSpec

ATTENTION_INPUTS = 4  # q, k, v and the table; biases and a mask follow
Attributes = Mapping[str, Any]


def product_spec_of(attrs: Attributes, rows: int, inputs: int, outputs: int) -> LinearSpec:
    """Return what follows the sums of a linear or a convolution, and the sizes of the product."""
    out_dtype = str(attrs["out_dtype"])
    return LinearSpec(
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        out_dtype=out_dtype,
        residual=bool(attrs["residual"]),
        table=bool(attrs["table"]),
        fixed_point=bool(attrs["fixed_point"]),
        gain=bool(attrs["gain"]),
        zero_point=int(attrs["zero_point"]),
        copy=_copy(attrs),
        **_clip(attrs, out_dtype),
    )


def pool_spec_of(attrs: Attributes) -> PoolSpec:
    """Return the spec of a pool."""
    names = [field.name for field in dataclasses.fields(Pooling) if field.name not in ("low", "high")]
    pooling = Pooling(**_fields(attrs, *names), **_clip(attrs, str(attrs["out_dtype"])))
    return PoolSpec(ConvGeometry.from_attrs(attrs), pooling)


def layer_norm_spec_of(attrs: Attributes, shapes: Sequence[Shape]) -> LayerNormSpec:
    """Return the spec of a layer norm."""
    pieces, (channels,) = int(attrs["pieces"]), shapes[1]
    rows = shapes[0][0] // (pieces or 1)
    numbers = _fields(attrs, "gain_shift", "epsilon", "limit", "out_dtype", "pieces")
    clip = _clip(attrs, str(attrs["out_dtype"]))
    return LayerNormSpec(rows, channels, **numbers, copy=_copy(attrs), **clip)


def attention_spec_of(attrs: Attributes, shapes: Sequence[Shape]) -> AttentionSpec:
    """Return the spec of an attention."""
    count = int(attrs["biases"])
    biases = shapes[ATTENTION_INPUTS:][:count]
    mask = shapes[ATTENTION_INPUTS + count :][: int(attrs["mask"])]
    optional = ("biases", "mask", "indexed", "low", "high")
    names = [f.name for f in dataclasses.fields(AttentionSpec) if f.name not in optional]
    return AttentionSpec(
        **_fields(attrs, *names),
        biases=tuple((shape[0], shape[1]) for shape in biases),
        mask=(mask[0][0], mask[0][1]) if mask else None,
        indexed=bool(attrs["indexed"]),
        **_clip(attrs, str(attrs["out_dtype"])),
    )


def _clip(attrs: Attributes, out_dtype: str) -> dict[str, Any]:
    """Return the clip bounds where they are not the dtype's own."""
    if out_dtype not in INTEGER_RANGE:
        return {}
    low, high = int(attrs["low"]), int(attrs["high"])
    return {} if (low, high) == INTEGER_RANGE[out_dtype] else {"low": low, "high": high}


def _copy(attrs: Attributes) -> tuple[int, ...] | None:
    """Return shift and zero point of a second result, and its clip bounds where they are not uint8's own."""
    if "copy_shift" not in attrs:
        return None
    shift, zero_point, *clip = (int(attrs[f"copy_{name}"]) for name in ("shift", "zero_point", "low", "high"))
    return (shift, zero_point) if tuple(clip) == INTEGER_RANGE["uint8"] else (shift, zero_point, *clip)


def _fields(attrs: Attributes, *names: str) -> dict[str, Any]:
    return {name: attrs[name] for name in names}
