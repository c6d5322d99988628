"""Which row of its source is each row of a value that reshapes, permutations, takes and joins make of it?

Windows, cyclic shifts and their reversals are such values, however an exporter wrote them. The moves are
run on the numbers of the elements: what comes out is exact for any chain, and for branches that meet again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from tvm import relax
from tvm.relax import op

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, op_name, shape_of
from tvmq.reference_ops import OPERATORS

Rows = npt.NDArray[np.int32]
Elements = tuple[Expr, torch.Tensor]
MOVES = ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten", "take", "strided_slice", "concat")


@dataclass(frozen=True, slots=True, eq=False)
class RowMove:
    """Row i of a value, seen as [rows, width], is row index[i] of source, seen likewise as rows of width."""

    source: Expr
    index: Rows = field(repr=False)
    rows: int  # of the source
    alone: bool = True  # nothing but the value reads the source, or what lies between the two

    @property
    def moves(self) -> bool:
        """Whether any row is not where it was, or missing."""
        return not np.array_equal(self.index, np.arange(self.rows))

    @property
    def is_permutation(self) -> bool:
        """Whether every row of the source is taken exactly once."""
        return np.array_equal(np.sort(self.index), np.arange(self.rows))

    def then(self, index: Rows) -> RowMove:
        """Return this move followed by one that takes row index[i] of its result."""
        return RowMove(self.source, self.index[index], self.rows, self.alone)


def row_move(graph: Rebuild, value: Expr, width: int | None = None) -> RowMove | None:
    """Return where the rows of a value (a variable or a call) come from; None if channels move too.

    width: how many channels a row has, where that is not the source's last axis.
    """
    walk = _Walk(graph)
    found = walk.elements(value)
    if found is None:
        return None
    source, elements = found
    shape = shape_of(source) or (1,)
    width, size = width or shape[-1], math.prod(shape)
    if elements.numel() % width or size % width:
        return None
    rows = elements.reshape(-1, width)
    first = rows[:, :1]
    if bool((first % width != 0).any()) or not torch.equal(rows, first + torch.arange(width)):
        return None
    alone = all(graph.uses(var) == count for var, count in walk.readings.items())
    index: Rows = (first[:, 0] // width).to(torch.int32).numpy()
    return RowMove(source, index, size // width, alone)


def take_rows(graph: Rebuild, value: Expr, channels: int, index: Expr) -> Expr:
    """Emit the rows of value, seen as [rows, channels], that index, a constant int32 [...], names."""
    flat = (math.prod(shape_of(value) or ()) // channels, channels)
    if shape_of(value) != flat:
        value = graph.emit(op.reshape(value, flat))
    return graph.emit(op.take(value, index, axis=0, mode="clip"))


class _Walk:
    """Run moves on the numbers of their source's elements, each move once."""

    def __init__(self, graph: Rebuild) -> None:
        self.graph = graph
        self.readings: Counter[Expr] = Counter()  # of variables, by what was walked
        self._seen: dict[Expr, Elements | None] = {}

    def elements(self, expr: Expr) -> Elements | None:
        """Return the one source behind expr, and which of its elements expr holds; None for two sources."""
        if not isinstance(expr, relax.Var):
            return self._moved(expr, self.graph.value(expr))
        self.readings[expr] += 1
        if expr not in self._seen:
            self._seen[expr] = self._moved(expr, self.graph.value(expr))
        return self._seen[expr]

    def _moved(self, expr: Expr, call: Expr) -> Elements | None:
        shape = shape_of(expr)
        if shape is None:
            return None
        if op_name(call) not in MOVES:
            return expr, torch.arange(math.prod(shape)).reshape(shape)
        several = isinstance(call.args[0], relax.Tuple)
        parts = [self.elements(part) for part in (call.args[0].fields if several else call.args[:1])]
        others = [_plain(arg) for arg in call.args[1:]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or any(other is None for other in others):
            return None
        source = known[0][0]
        if any(not part[0].same_as(source) for part in known):
            return None
        moved = tuple(part[1] for part in known) if several else known[0][1]
        return source, OPERATORS[op_name(call)]([moved, *others], call.attrs, call)


def _plain(arg: Expr) -> object:
    """Return an argument as the reference's operators take it, None where it is not known."""
    array = array_of(arg)
    if array is not None:
        return torch.from_numpy(np.array(array))
    if not isinstance(arg, relax.ShapeExpr | relax.Tuple):
        return None
    return tuple(int(v) for v in (arg.values if isinstance(arg, relax.ShapeExpr) else arg.fields))
