"""Vector expressions of TIR for kernels that are written lane by lane with the IR builder.

One lane is a scalar, so a kernel whose axis has no even factor is the same code with lanes = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T  # noqa: N812
from tvm.tirx import Shuffle, address_of, call_intrin, const

from tvmq.numerics import INTEGER_RANGE

Expr = Any  # TVM ships no stubs
Buffer = Any
Index = Expr | tuple[Expr, ...]


def load(buffer: Buffer, index: Index, count: int) -> Expr:
    """Return count contiguous elements of buffer from index on."""
    return buffer[tuple(_lane_indices(index, count))]


def store(buffer: Buffer, index: Index, value: Expr) -> None:
    """Emit the store of value's lanes to contiguous elements of buffer from index on."""
    T.buffer_store(buffer, value, _lane_indices(index, lanes(value)))


def lanes(value: Expr) -> int:
    """Return how many lanes value has."""
    _, _, count = str(value.ty.dtype).partition("x")
    return int(count or 1)


def vector_type(element: str, count: int) -> str:
    """Return "int32x16" for ("int32", 16), and the element itself for one lane."""
    return element if count == 1 else f"{element}x{count}"


def repeat(value: Expr, count: int) -> Expr:
    """Return value in every one of count lanes."""
    return value if count == 1 else T.broadcast(value, count)


def splat(value: float, dtype: str) -> Expr:
    """Return a constant in every lane of dtype, as in "int32x16"."""
    element, _, count = dtype.partition("x")
    return repeat(const(value, element), int(count or 1))


def limited(values: Expr, limits: tuple[int, int]) -> Expr:
    """Return integers clipped to limits, by no instruction at an end where their dtype has no others."""
    dtype = str(values.ty.dtype)
    ends = INTEGER_RANGE[dtype.partition("x")[0]]
    for limit, end, clip in zip(limits, ends, (T.max, T.min), strict=True):
        if limit != end:
            values = clip(values, splat(limit, dtype))
    return values


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    """Return the lanes that order names, counted through all vectors in turn."""
    return Shuffle(list(vectors), [const(lane, "int32") for lane in order])


def lane_of(vector: Expr, lane: int, count: int) -> Expr:
    """Return one lane of vector, count times."""
    if lanes(vector) < count:  # which a shuffle of TVM must not be
        return repeat(vector if lanes(vector) == 1 else shuffle([vector], [lane]), count)
    return shuffle([vector], [lane] * count)


def concat(vectors: Sequence[Expr], dtype: str) -> Expr:
    """Return the lanes of all vectors in turn, each vector's bits read as dtype."""
    parts = [T.reinterpret(dtype, vector) for vector in vectors]
    return shuffle(parts, range(sum(map(lanes, parts))))


def prefetch(buffer: Buffer, index: Index, *, level: int = 1) -> None:
    """Ask for the cache line of an element, which will be read soon, into the cache of this level."""
    T.evaluate(prefetch_call(buffer, index, level=level))


def prefetch_call(buffer: Buffer, index: Index, *, level: int = 1) -> Expr:
    """Return what `prefetch` evaluates."""
    read, keep, data = (const(number, "int32") for number in (0, 4 - level, 1))
    return call_intrin("void", "tirx.prefetch", address_of(buffer[index]), read, keep, data)


def reduce_lanes(operation: str, vector: Expr) -> Expr:
    """Return the "add" or "smax" over the lanes of an int32 vector; the LLVM intrinsic has every target."""
    count = lanes(vector)
    if count == 1:
        return vector
    return T.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{operation}.v{count}i32", vector)


def _lane_indices(index: Index, count: int) -> list[Expr]:
    *outer, last = index if isinstance(index, tuple) else (index,)
    return [*outer, last if count == 1 else T.ramp(last, 1, count)]


def whole(buffer: Buffer) -> Any:
    """Return all of a buffer, as a block reads or writes it."""
    return buffer[tuple(slice(0, size) for size in buffer.shape)]
