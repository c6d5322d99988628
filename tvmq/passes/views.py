"""Which element of its source does each element of a reshaped, permuted and sliced tensor hold?

The question behind "is this chain of reshapes and permutations the split into heads?" has one exact
answer per chain, however an exporter wrote it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, op_name, shape_of
from tvmq.passes.remove_no_ops import permutation

Atom = tuple[int, int]  # (size, stride in elements of the flat source)
VIEWS = ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten")


@dataclass(frozen=True, slots=True)
class Layout:
    """A view of a flat source: each axis walks its atoms, the last atom fastest.

    Normal form: no atom of size 1; neighbours in an axis that walk the source evenly are one atom. So two
    views are the same exactly when their layouts are equal.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[Atom, ...], ...]
    offset: int = 0

    @staticmethod
    def of(shape: tuple[int, ...]) -> Layout:
        """Return the layout of a tensor as it lies in memory."""
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        axes = tuple(_merged([(d, s)]) for d, s in zip(shape, strides, strict=True))
        return Layout(shape, axes)

    def reshape(self, shape: tuple[int, ...]) -> Layout | None:
        """Return the reshaped view; None if an axis would not be whole atoms."""
        atoms = list(_merged(list(chain.from_iterable(self.axes))))[::-1]
        axes = []
        for size in shape:
            axis = _take(atoms, size)
            if axis is None:
                return None
            axes.append(_merged(axis))
        return Layout(shape, tuple(axes), self.offset)

    def permute(self, axes: list[int]) -> Layout:
        """Return the view with its axes in another order."""
        return Layout(tuple(self.shape[a] for a in axes), tuple(self.axes[a] for a in axes), self.offset)

    def narrow(self, axis: int, begin: int, size: int) -> Layout | None:
        """Return the view of size entries of an axis, from begin; None if the axis is not one atom."""
        if self.shape[axis] == 1:
            return self if (begin, size) == (0, 1) else None
        if len(self.axes[axis]) != 1:
            return None
        stride = self.axes[axis][0][1]
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        axes = (*self.axes[:axis], _merged([(size, stride)]), *self.axes[axis + 1 :])
        return Layout(shape, axes, self.offset + begin * stride)


def trace(graph: Rebuild, expr: Expr) -> tuple[Expr, list[Any]]:
    """Return what expr is a view of, and the calls that make the view, first one first."""
    views = []
    call = graph.call(expr, *VIEWS)
    while call is not None:
        views.append(call)
        expr = call.args[0]
        call = graph.call(expr, *VIEWS)
    return expr, views[::-1]


def replay(layout: Layout | None, views: list[Any]) -> Layout | None:
    """Return the layout after the calls in views; None if one of them cannot be followed."""
    for call in views:
        shape = shape_of(call)
        if layout is None or shape is None:
            return None
        if op_name(call) == "permute_dims":
            layout = layout.permute(permutation(call))
        else:
            layout = layout.reshape(shape)
    return layout


def narrowing(graph: Rebuild, value: Expr) -> tuple[Expr, int, int, int] | None:
    """Return (source, axis, begin, size) where value is one contiguous piece of source along an axis.

    It is a strided_slice of one axis, a take of one entry, or an item of an even split.
    """
    split = graph.value(value.tuple_value) if hasattr(value, "tuple_value") else None
    if split is not None:
        return _split_item(split, value.index) if op_name(split) == "split" else None
    if op_name(value) == "take":
        index = array_of(value.args[1])
        if index is None or index.size != 1 or value.attrs.axis is None:
            return None
        axis = int(value.attrs.axis) % len(value.args[0].ty.shape)
        return value.args[0], axis, int(index.reshape(-1)[0]) % int(value.args[0].ty.shape[axis]), 1
    return _slice(value) if op_name(value) == "strided_slice" else None


def _slice(call: Any) -> tuple[Expr, int, int, int] | None:
    fields = [[int(v) for v in arg] for arg in call.args[1:]]
    axes, begins = fields[0], fields[1]
    if len(axes) != 1 or (len(fields) > 3 and fields[3] != [1]):
        return None
    source, result = shape_of(call.args[0]), shape_of(call)
    if source is None or result is None:
        return None
    axis = axes[0] % len(source)
    begin = begins[0] if begins[0] >= 0 else begins[0] + source[axis]
    return call.args[0], axis, begin, result[axis]


def _split_item(split: Any, index: int) -> tuple[Expr, int, int, int] | None:
    source = shape_of(split.args[0])
    if source is None:
        return None
    axis = int(split.attrs.axis) % len(source)
    sizes = [int(field.shape[axis]) for field in split.ty.fields]
    return split.args[0], axis, sum(sizes[:index]), sizes[index]


def _merged(atoms: list[Atom]) -> tuple[Atom, ...]:
    out: list[Atom] = []
    for size, stride in atoms:
        if size == 1:
            continue
        if out and out[-1][1] == size * stride:
            out[-1] = (out[-1][0] * size, stride)
        else:
            out.append((size, stride))
    return tuple(out)


def _take(atoms: list[Atom], size: int) -> list[Atom] | None:
    """Pop atoms (last one first) until they hold size elements; the last may be cut in two."""
    axis = []
    while size > 1:
        if not atoms:
            return None
        have, stride = atoms.pop()
        if size % have == 0:
            axis.append((have, stride))
            size //= have
        elif have % size == 0:
            rest = have // size
            axis.append((size, stride * rest))
            atoms.append((rest, stride))
            size = 1
        else:
            return None
    return axis
