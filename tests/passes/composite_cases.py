"""Every form of composite with random arguments, and its result by numerics.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvmq import numerics
from tvmq.formats import code_limits
from tvmq.passes import attention_composite, composites
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.epilogue import Copy, Epilogue


@dataclass(frozen=True)
class Case:
    """A composite, what it is called with, and what numerics.py makes of that."""

    func: relax.Function
    args: tuple[np.ndarray, ...]
    expected: np.ndarray


def linear(
    out_dtype: str,
    in_dtype: str = "uint8",
    *,
    low: int | None = None,
    zero_point: int = 0,
    fixed_point: bool = False,
    gain: bool = False,
    residual: bool = False,
    table: bool = False,
) -> Case:
    """Return a product of 5 x 8 and 8 x 6; its sums spread over the whole range of the result and past it."""
    rng = np.random.default_rng(3)
    lowest, highest = numerics.INTEGER_RANGE[in_dtype]
    x = rng.integers(lowest, highest + 1, (5, 8)).astype(in_dtype)
    weight = rng.integers(-127, 128, (8, 6)).astype(np.int8)
    bias = rng.integers(-20000, 20000, 6).astype(np.int32)
    acc = x.astype(np.int64) @ weight + bias
    args: list[np.ndarray] = [x, weight, bias]
    if out_dtype == "float32":
        factor = rng.random(6, np.float32)
        plain = Epilogue(out_dtype="float32")
        func = composites.linear("site", plain, rows=5, inputs=8, outputs=6, in_dtype=in_dtype)
        return Case(func, (*args, factor), acc.astype(np.float32) * factor)
    if fixed_point:
        multiplier, shift = numerics.fixed_point_multiplier(rng.random(6) * 0.01 + 0.001)
        y = numerics.requantize_fixed_point(acc, multiplier, shift, zero_point, "int32").astype(np.int64)
        args += [multiplier, shift]
    elif gain:
        args += [np.array([1, 3, 7, 9, 11, 15], np.int8), np.array([0, 4, 9, 10, 11, 12], np.int8)]
        y = (acc - bias) * args[-2] + bias >> args[-1]
    else:
        shift = np.array([0, 3, 6, 7, 8, 9], np.int32)
        y = acc >> shift
        args.append(shift)
    if residual:
        args.append(rng.integers(-300, 300, (5, 6)).astype(np.int16))
        y = y + args[-1]
    bottom, top = numerics.INTEGER_RANGE[out_dtype]
    low = bottom if low is None else low
    y = np.clip(y, low, top).astype(out_dtype)
    if table:
        args.append(rng.integers(0, 256, 256).astype(np.uint8))
        y = args[-1][y]
    epilogue = Epilogue(
        out_dtype=out_dtype,
        low=low,
        high=top,
        zero_point=zero_point,
        fixed_point=fixed_point,
        gain=gain,
        residual=residual,
        table=table,
    )
    func = composites.linear("site", epilogue, rows=5, inputs=8, outputs=6, in_dtype=in_dtype)
    return Case(func, tuple(args), y)


def conv2d(
    *, channels: int = 4, outputs: int = 6, groups: int = 1, copy: Copy | None = None, **window: int
) -> Case:
    """Return a convolution of 2 images of 7 x 6 by 3 x 2 taps, padded with 9 on some sides."""
    rng = np.random.default_rng(7)
    geometry = ConvGeometry(
        batch=2,
        rows=7,
        columns=6,
        channels=channels,
        outputs=outputs,
        kernel_rows=3,
        kernel_columns=2,
        groups=groups,
        **window,
    )
    g = geometry
    x = rng.integers(0, 256, (2 * 7 * 6, channels)).astype(np.uint8)
    weight = rng.integers(-127, 128, (3, 2, g.group_inputs, outputs)).astype(np.int8)
    bias = rng.integers(-9000, 9000, outputs).astype(np.int32)
    shift = rng.integers(5, 9, outputs).astype(np.int32)
    sums = numerics.convolution(
        x.reshape(2, 7, 6, channels),
        weight,
        strides=(g.stride_rows, g.stride_columns),
        padding=(g.top, g.left, g.bottom, g.right),
        dilation=(g.dilation_rows, g.dilation_columns),
        groups=groups,
        pad_value=9,
    )
    y = (sums.reshape(g.pixels, outputs) + bias) >> shift
    dtype = "uint8" if copy is None else "int16"
    epilogue = Epilogue(out_dtype=dtype, low=3, high=200, copy=copy)
    func = composites.conv2d("site", epilogue, geometry, in_dtype="uint8", pad_value=9)
    expected = np.clip(y, 3, 200).astype(dtype)
    return Case(func, (x, weight, bias, shift), expected)


def layer_norm(out_dtype: str, pieces: int = 0, bits: int | None = None) -> Case:
    """Return a norm of constant, extreme and ordinary rows of 12 channels, whole or in scattered pieces."""
    rng = np.random.default_rng(4)
    extreme = np.where(np.arange(12) == 5, 32767, -32768)
    x = np.stack([np.full(12, -7), extreme, *rng.integers(-900, 900, (3, 12))]).astype(np.int16)
    gain = rng.integers(-30000, 30000, 12).astype(np.int32)
    offset = rng.integers(-(2**24), 2**24, 12).astype(np.int32)
    low, high = numerics.INTEGER_RANGE[out_dtype] if bits is None else code_limits(out_dtype, bits)
    numbers = {"gain_shift": 18, "epsilon": 5000, "limit": numerics.layer_norm_limit(12)}
    func = composites.layer_norm(
        "site", rows=5, channels=12, out_dtype=out_dtype, low=low, high=high, pieces=pieces, **numbers
    )
    expected = numerics.layer_norm(x, gain, offset, dtype=out_dtype, **numbers).clip(low, high)
    if not pieces:
        return Case(func, (x, gain, offset), expected)
    index = rng.permutation(5 * pieces).astype(np.int32)
    return Case(func, (scattered(x.reshape(len(index), -1), index), gain, offset, index), expected)


def scattered(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return rows so that index takes them back."""
    result = np.empty_like(rows)
    result[index] = rows
    return result


def attention(
    score_shift: int,
    out_dtype: str,
    zero_point: int,
    biases: Sequence[tuple[int, int]] = (),
    mask: tuple[int, int] | None = None,
    *,
    indexed: bool = False,
    clip: tuple[int, int] | None = None,
) -> Case:
    """Return 2 heads of 4 queries over 7 keys, twice; with a mask, a row that sees no key."""
    rng = np.random.default_rng(5)
    batch, heads, queries, keys, depth = 2, 2, 7 if indexed else 4, 7, 8
    q, k, v = (
        rng.integers(-128, 128, (batch * n, heads * depth)).astype(np.int8) for n in (queries, keys, keys)
    )
    table = numerics.softmax_table()
    added = [rng.integers(-300, 300, (*sizes, queries, keys)).astype(np.int16) for sizes in biases]
    shown = [] if mask is None else [rng.integers(0, 2, (*mask, keys)).astype(np.uint8)]
    for m in shown:
        m[0, 0], m[-1, -1, 3] = 0, 1
    numbers = {
        "score_shift": score_shift,
        "numerator": 3 * 2**28,
        "norm_shift": 30,
        "zero_point": zero_point,
    }
    split = [a.reshape(batch, -1, heads, depth).transpose(0, 2, 1, 3) for a in (q, k, v)]
    terms = {"biases": added, "mask": shown[0] if shown else None}
    low, high = clip or numerics.INTEGER_RANGE[out_dtype]
    mixed = numerics.attention(*split, table, dtype=out_dtype, **numbers, **terms).clip(low, high)
    spec = attention_composite.AttentionSpec(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        head_dim=depth,
        out_dtype=out_dtype,
        biases=tuple(biases),
        mask=mask,
        indexed=indexed,
        low=low,
        high=high,
        **numbers,
    )
    func = attention_composite.attention("site", spec)
    expected = mixed.transpose(0, 2, 1, 3).reshape(batch * queries, heads * depth)
    if not indexed:
        return Case(func, (q, k, v, table, *added, *shown), expected)
    index = rng.permutation(batch * queries).astype(np.int32)
    q, k, v, expected = (scattered(x, index) for x in (q, k, v, expected))
    return Case(func, (q, k, v, table, *added, *shown, index, np.argsort(index).astype(np.int32)), expected)


def lookup() -> Case:
    """Return a table of 256 values."""
    rng = np.random.default_rng(6)
    x, table = rng.integers(0, 256, (4, 9)).astype(np.uint8), rng.integers(0, 256, 256).astype(np.uint8)
    return Case(composites.table("site", shape=(4, 9)), (x, table), table[x])


CASES: dict[str, Callable[[], Any]] = {
    "linear to uint8": lambda: linear("uint8"),
    "linear, relu above zero point 9": lambda: linear("uint8", low=9),
    "linear to int8": lambda: linear("int8"),
    "linear from int8": lambda: linear("int8", "int8"),
    "linear and residual": lambda: linear("int16", residual=True),
    "linear and table": lambda: linear("uint8", table=True),
    "linear to float": lambda: linear("float32"),
    "fixed point": lambda: linear("uint8", fixed_point=True, zero_point=128),
    "gain": lambda: linear("uint8", gain=True),
    "gain and residual": lambda: linear("int16", gain=True, residual=True),
    "fixed point and residual": lambda: linear("int16", fixed_point=True, residual=True),
    "fixed point and table": lambda: linear("uint8", fixed_point=True, zero_point=3, table=True),
    "convolution": lambda: conv2d(top=1, left=2, right=1),
    "convolution with strides": lambda: conv2d(stride_rows=2, stride_columns=3),
    "convolution, dilated": lambda: conv2d(dilation_rows=2, dilation_columns=3, bottom=1),
    "convolution in groups": lambda: conv2d(groups=2, top=1),
    "depthwise": lambda: conv2d(channels=6, groups=6, top=1, left=1, right=1),
    "layer norm to uint8": lambda: layer_norm("uint8"),
    "layer norm to int16": lambda: layer_norm("int16"),
    "layer norm to 4 bits": lambda: layer_norm("uint8", bits=4),
    "attention to 4 bits": lambda: attention(6, "uint8", 9, clip=(0, 15)),
    "layer norm of pieces": lambda: layer_norm("uint8", 3),
    "attention": lambda: attention(6, "uint8", 128),
    "attention of large logits": lambda: attention(-3, "int8", 0),
    "attention without shift": lambda: attention(0, "int8", 0),
    "attention with a bias": lambda: attention(9, "int8", 0, [(1, 2)]),
    "attention in windows": lambda: attention(9, "uint8", 128, [(1, 2), (2, 1)]),
    "attention in another order": lambda: attention(9, "uint8", 128, [(2, 2)], mask=(1, 7), indexed=True),
    "attention with hidden keys": lambda: attention(9, "uint8", 128, mask=(2, 1)),
    "attention with hidden pairs": lambda: attention(9, "int8", 0, [(2, 2)], mask=(1, 4)),
    "table": lookup,
}
