"""Windowed attention as models write it: rows cut into windows, shifted or not, and put back."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.golden import const

SIZE, WINDOW, HEADS, DEPTH = 4, 2, 2, 4  # a 4 x 4 image in four windows of 2 x 2 tokens
TOKENS, WIDTH, WINDOWS = SIZE * SIZE, HEADS * DEPTH, (SIZE // WINDOW) ** 2
BY_HEAD = (WINDOWS, WINDOW * WINDOW, HEADS, DEPTH)


def rolled(emit, x, by: int, how: str):
    """Return x [1, 4, 4, C] shifted cyclically, as torch's take or ONNX's joined slices."""
    if how == "take":
        index = relax.const((np.arange(SIZE) + by) % SIZE, "int64")
        return emit(op.take(emit(op.take(x, index, axis=1)), index, axis=2))
    for axis in (1, 2):
        cut = by % SIZE
        parts = [
            emit(op.strided_slice(x, axes=[axis], begin=[b], end=[e])) for b, e in ((cut, SIZE), (0, cut))
        ]
        x = emit(op.concat(parts, axis=axis))
    return x


def windows(emit, x):
    """Return x [1, 4, 4, C] as windows of tokens, [4, 4, C]."""
    c, across = int(x.ty.shape[-1]), SIZE // WINDOW
    cut = emit(op.reshape(x, (1, across, WINDOW, across, WINDOW, c)))
    return emit(op.reshape(emit(op.permute_dims(cut, [0, 1, 3, 2, 4, 5])), (WINDOWS, WINDOW * WINDOW, c)))


def image(emit, x):
    """Return windows [4, 4, C] as the image [1, 4, 4, C]."""
    c, across = int(x.ty.shape[-1]), SIZE // WINDOW
    cut = emit(op.reshape(x, (1, across, across, WINDOW, WINDOW, c)))
    return emit(op.reshape(emit(op.permute_dims(cut, [0, 1, 3, 2, 4, 5])), (1, SIZE, SIZE, c)))


def rows_of_windows(shift: int) -> np.ndarray:
    """Return the row of the image that each token of each window is, int32 [windows, tokens]."""
    grid = np.roll(np.arange(TOKENS).reshape(SIZE, SIZE), (-shift, -shift), (0, 1))
    cut = grid.reshape(SIZE // WINDOW, WINDOW, SIZE // WINDOW, WINDOW).transpose(0, 2, 1, 3)
    return cut.reshape(WINDOWS, WINDOW * WINDOW).astype(np.int32)


def windowed(shift: int = 0, how: str = "take") -> tvm.IRModule:
    """Return x + linear(attention(linears(x))) with the moves around the linears, as importers leave them."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    emit = builder.emit
    with builder.function("main", [x]):
        with builder.dataflow():
            moved = windows(emit, rolled(emit, x, shift, how) if shift else x)
            split = [_product(emit, moved, seed) for seed in range(3)]
            mixed = _mixed(emit, [emit(op.reshape(each, BY_HEAD)) for each in split])
            joined = emit(op.reshape(mixed, (*BY_HEAD[:2], WIDTH)))
            y = image(emit, _product(emit, joined, 3))
            y = rolled(emit, y, -shift, how) if shift else y
            out = builder.emit_output(op.add(x, y))
        builder.emit_func_output(out)
    return builder.get()


def taken(shift: int = 0) -> tvm.IRModule:
    """Return the same function with the linears on rows in the image's order."""
    index = relax.const(rows_of_windows(shift))
    inverse = relax.const(np.argsort(rows_of_windows(shift).ravel()).astype(np.int32).reshape(1, SIZE, SIZE))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    emit = builder.emit
    with builder.function("main", [x]):
        with builder.dataflow():
            split = []
            for seed in range(3):
                rows = emit(op.reshape(_product(emit, x, seed), (TOKENS, WIDTH)))
                moved = emit(op.take(rows, index, axis=0, mode="clip"))
                split.append(emit(op.reshape(moved, BY_HEAD)))
            y = emit(op.reshape(_mixed(emit, split), (TOKENS, WIDTH)))
            y = _product(emit, emit(op.take(y, inverse, axis=0, mode="clip")), 3)
            out = builder.emit_output(op.add(x, y))
        builder.emit_func_output(out)
    return builder.get()


def _product(emit, x, seed: int):
    return emit(op.add(emit(op.matmul(x, const(WIDTH, WIDTH, seed=seed))), const(WIDTH, seed=seed + 10)))


def _mixed(emit, qkv):
    """Return attention with a position bias over q, k, v, [4, 4, 2, 4] each."""
    tokens = WINDOW * WINDOW
    return emit(op.nn.attention(*qkv, const(1, HEADS, tokens, tokens, seed=20), scale=0.5))
