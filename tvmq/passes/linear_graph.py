"""Walk between values and the linears that make or take them, reshapes and moved rows looked through."""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Var, bindings, op_name, shape_of, used_vars


class LinearGraph:
    """The bindings of one function and who reads them."""

    def __init__(self, func: relax.Function) -> None:
        self.values: dict[Var, Expr] = {b.var: b.value for b in bindings(func)}
        self.readers: dict[Var, list[Var]] = {}
        for var, value in self.values.items():
            for used in used_vars(value):
                self.readers.setdefault(used, []).append(var)
        self.outputs = set(used_vars(func.body.body))

    def op(self, var: Var) -> str:
        """Return the operator that makes var, "" for a parameter."""
        return op_name(self.values[var]) if var in self.values else ""

    def linears(self, var: Var) -> list[Var] | None:
        """Return the matmuls by a constant that read var, through what keeps its channels."""
        if var in self.outputs or not self.readers.get(var):
            return None
        found: list[Var] = []
        for reader in self.readers[var]:
            call = self.values[reader]
            if self._moves_rows(reader):
                nested = self.linears(reader)
                if nested is None:
                    return None
                found += nested
            elif is_linear(call) and call.args[0].same_as(var):
                found.append(reader)
            else:
                return None
        return found

    def linear_before(self, var: Var) -> tuple[Var, Var | None] | None:
        """Return (matmul, bias addition if any) that alone make var [B, T, H, D], read nowhere else."""
        if self.op(var) != "reshape" or self.only_reader(var) is None:
            return None
        if not _splits_channels(self.values[var]):
            return None
        var, bias = self.values[var].args[0], None
        while self._moves_rows(var):
            if self.only_reader(var) is None:
                return None
            var = self.values[var].args[0]
        if self.op(var) == "add" and is_channel_constant(self.values[var]):
            var, bias = self.values[var].args[0], var
        made = (var,) if bias is None else (var, bias)
        alone = all(self.only_reader(each) is not None for each in made)
        return (var, bias) if alone and var in self.values and is_linear(self.values[var]) else None

    def _moves_rows(self, var: Var) -> bool:
        """Tell whether var is another variable's rows, all of them, with their channels last."""
        if self.op(var) not in ("reshape", "take"):
            return False
        call = self.values[var]
        return (
            isinstance(call.args[0], relax.Var)
            and _keeps_channels(call)
            and (self.op(var) == "reshape" or _permutes_rows(call))
        )

    def only_reader(self, var: Var) -> Var | None:
        """Return the one reader of var, None where there are more, or the function returns it."""
        readers = self.readers.get(var, [])
        return readers[0] if len(readers) == 1 and var not in self.outputs else None


def is_constant(expr: Expr) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


def is_linear(call: Expr) -> bool:
    """Tell whether call is a matmul by a constant [K, N]."""
    return op_name(call) == "matmul" and is_constant(call.args[1]) and len(call.args[1].ty.shape) == 2


def is_channel_constant(call: Expr) -> bool:
    """Tell whether call adds a constant that has one value per channel of the last axis."""
    if not is_constant(call.args[1]):
        return False
    shape = shape_of(call.args[1]) or (0,)
    return math.prod(shape) == shape[-1] == (shape_of(call) or (None,))[-1]


def _keeps_channels(call: Expr) -> bool:
    before, after = shape_of(call.args[0]), shape_of(call)
    return before is not None and after is not None and before[-1:] == after[-1:]


def _splits_channels(call: Expr) -> bool:
    """Tell whether a reshape to [B, T, H, D] cuts the channels of each row, but no row and joins none."""
    before, after = shape_of(call.args[0]), shape_of(call)
    return before is not None and after is not None and before[-1] == math.prod(after[-2:])


def _permutes_rows(take: Expr) -> bool:
    """Tell whether take picks every entry of an axis that is not the last exactly once, by a constant."""
    shape, index = shape_of(take.args[0]), array_of(take.args[1])
    if shape is None or index is None or take.attrs.axis is None:
        return False
    axis = int(take.attrs.axis) % len(shape)
    return axis != len(shape) - 1 and np.array_equal(np.sort(index, axis=None), np.arange(shape[axis]))
