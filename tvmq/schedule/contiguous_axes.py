"""Which neighbouring axes of a loop nest walk through memory as one: rows of an image that nothing cuts.

Such axes become one. What it reads is then indexed so that the last index counts on through the rows that
follow: the same element, and no division that hides from later passes that neighbours are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Range, TensorLoad
from tvm.sym import Analyzer

FLAT = "tvmq.flat"  # the annotation of a block one axis of which was several: [its place, its lanes]
WIDTH = 16  # of an axis that needs no others


def contiguous_loops(block: Any, spatial: int, parameters: Sequence[Any]) -> int:
    """Return how many of the leading spatial axes of block, counted from the last, may become one.

    1: none may, or the last one alone is as good. parameters: of the function. Its own buffers are left
    alone, since TVM makes them as large as the indices that it sees.
    """
    axes = block.iter_vars
    if not all(isinstance(axis.dom.extent, tirx.IntImm) for axis in axes):
        return 1
    extents = [int(axis.dom.extent) for axis in axes]
    accesses = _accesses(block, parameters)
    if extents[spatial - 1] % WIDTH == 0 or accesses is None:
        return 1
    steps = [_steps(access, axes[:spatial], axes) for access in accesses]
    along = 1
    while along < spatial and all(_contiguous(each, extents[:spatial], along + 1) for each in steps):
        along += 1
    grown = math.prod(extents[spatial - along : spatial]) > extents[spatial - 1]
    return along if grown else 1


def _accesses(block: Any, parameters: Sequence[Any]) -> list[tuple[Any, Any]] | None:
    """Return (buffer, indices) of all loads and the store; None where that is not all there is."""
    if not isinstance(block.body, tirx.BufferStore) or block.init is not None:
        return None
    loads = _nodes(block.body.value, TensorLoad)
    found = [(block.body.buffer, block.body.indices), *((load.source, load.indices) for load in loads)]
    if any(_nodes(index, TensorLoad) for _, indices in found for index in indices):
        return None  # a table, whose elements are read in no order
    rest = tvm_ffi.structural_map(
        block.body.value, (TensorLoad, lambda load: tirx.const(0, str(load.ty.dtype)))
    )
    known = all(any(buffer.same_as(own) for own in parameters) and not buffer.strides for buffer, _ in found)
    return found if known and not _nodes(rest, tirx.Var) else None


def _nodes(expr: Any, kind: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, lambda node: found.append(node) if isinstance(node, kind) else None)
    return found


def _steps(access: tuple[Any, Any], spatial: Sequence[Any], axes: Sequence[Any]) -> list[int | None]:
    """Return how many elements an access moves as each axis takes a step; None where that depends."""
    analyzer, offset = Analyzer(), _offset(*access)
    for axis in axes:
        analyzer.bind(axis.var, Range(0, axis.dom.extent))
    found: list[int | None] = []
    for axis in spatial:
        step = analyzer.simplify(_with(offset, {axis.var: axis.var + 1}) - offset)
        found.append(int(step) if isinstance(step, tirx.IntImm) else None)
    return found


def _offset(buffer: Any, indices: Sequence[Any]) -> Any:
    offset = tirx.const(0, "int64")
    for size, index in zip(buffer.shape, indices, strict=True):
        offset = offset * size + index
    return offset


def _with(expr: Any, values: dict[Any, Any]) -> Any:
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda variable: values.get(variable, variable)))


def _contiguous(steps: list[int | None], extents: list[int], along: int) -> bool:
    """Whether the last axes move through neighbours, or not at all; an axis of one step moves nowhere."""
    size, wanted = 1, []
    for extent in reversed(extents[-along:]):
        wanted.append(size)
        size *= extent
    own = [
        (s, w) for s, w, e in zip(steps[-along:], reversed(wanted), extents[-along:], strict=True) if e > 1
    ]
    return all(s == w for s, w in own) or all(s == 0 for s, _ in own)


@dataclass(frozen=True, slots=True)
class Flat:
    """The axis of a scheduled block that was several."""

    axes: tuple[Any, ...]  # all variables of the block
    split: tuple[Any, ...]  # those that the axis is now: one, or one and its lane
    lanes: int

    @classmethod
    def of(cls, block: Any) -> Flat | None:
        """Return what the annotation FLAT of a block says, None if it has none."""
        if FLAT not in block.annotations:
            return None
        place, lanes = (int(number) for number in block.annotations[FLAT])
        axes = tuple(axis.var for axis in block.iter_vars)
        return cls(axes, axes[place : place + 1 + (lanes > 1)], lanes)

    def indices(self, buffer: Any, indices: Sequence[Any]) -> list[Any]:
        """Return indices of the same element, the last of which alone moves with the axis."""
        start = [_with(index, {axis: _number(0, axis) for axis in self.split}) for index in indices]
        last, offset = self.split[-1], _offset(buffer, indices)
        origin = {axis: _number(0, axis) for axis in self.axes}
        first, second = (
            Analyzer().simplify(_with(offset, {**origin, last: _number(step, last)})) for step in (0, 1)
        )
        position = self.split[0] * self.lanes + self.split[1] if self.lanes > 1 else self.split[0]
        return [*start[:-1], start[-1] + position * (int(second) - int(first))]


def _number(value: int, axis: Any) -> Any:
    return tirx.const(value, str(axis.ty.dtype))
