"""Find chains of element-wise operators that compute one value from one other: the functions that are tables.

    add(x, 3) -> clip(0, 6) -> multiply(x, _) -> divide(6)      hard-swish, a function of x alone
    multiply(x, y)                                              no chain: a product of two values

The chain stays in the graph as it is; the plan counts it as one site, named by its last value, and lowering
makes a table of it. Both ask here, at level canonical and at level qdq.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.passes.affine import WEIGHT_CHANNEL_AXIS
from tvmq.passes.constants import scalar_of
from tvmq.passes.rebuild import Expr, Var, bindings, dtype_of, op_name, shape_of, used_vars
from tvmq.unary import ELEMENTWISE, UNARY_FUNCTIONS, Floats, unary_name

WHOLE = 2.0**-10  # how far float32 leaves a multiple of a scale from a whole number, at most


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A function of one float value, as the bindings that compute it."""

    source: Var
    steps: tuple[tuple[Var, Expr], ...]  # in an order that can be computed; the last one is the result

    @property
    def names(self) -> tuple[str, ...]:
        """Return what the bindings are called."""
        return tuple(str(var.name) for var, _ in self.steps)

    def __call__(self, x: Floats) -> Floats:
        """Return the function of x in float64; 0 where it has no value, as a logarithm below 0."""
        values: dict[Var, Any] = {self.source: x}
        with np.errstate(all="ignore"):
            for var, call in self.steps:
                args = [values[arg] if isinstance(arg, relax.Var) else _number(arg) for arg in call.args]
                args += [float(call.attrs.alpha)] if op_name(call) == "nn.leakyrelu" else []
                values[var] = ELEMENTWISE[_short(call)](*args)
        result: Floats = np.broadcast_to(values[self.steps[-1][0]], x.shape).astype(np.float64)
        return np.where(np.isnan(result), 0.0, result)


@dataclass(frozen=True, slots=True)
class Chains:
    """The chains of a function."""

    by_result: Mapping[Var, Chain]  # in graph order; those of one operator that UNARY_FUNCTIONS has left out
    inside: frozenset[Var]  # what nothing but chains reads


def chains_of(func: relax.Function) -> Chains:
    """Return the longest chains, none of which looks past a value that something else reads.

    That value is computed anyway, so it is where the next chain begins.
    """
    values = {b.var: b.value for b in bindings(func)}
    limits = _limits(func, values)
    elementwise = {
        var: value
        for var, value in values.items()
        if var not in limits and _is_elementwise(var, value, values)
    }
    read = set(used_vars(func.body.body))
    read.update(v for var, value in values.items() if var not in elementwise for v in used_vars(value))
    while True:
        sources = _sources(elementwise, read)
        alone = [value for var, value in elementwise.items() if var not in sources]
        more = {v for value in alone for v in used_vars(value)} - read
        if not more:
            break
        read |= more
    found = {var: Chain(sources[var], _steps(var, sources[var], values)) for var in sources if var in read}
    return Chains(
        {var: chain for var, chain in found.items() if not _has_own_name(chain)},
        frozenset(sources) - read,
    )


def _limits(func: relax.Function, values: Mapping[Var, Expr]) -> set[Var]:
    """Return the clips that only say which numbers the quantize behind them may give: part of no function."""
    readers: dict[Var, list[Expr]] = {}
    for value in values.values():
        for var in used_vars(value):
            readers.setdefault(var, []).append(value)
    read = set(used_vars(func.body.body))
    return {
        var
        for var, value in values.items()
        if op_name(value) == "clip"
        and var in readers
        and var not in read
        and all(_is_limited(value, reader) for reader in readers[var])
    }


def _is_limited(clip: Expr, reader: Expr) -> bool:
    """Whether reader is a quantize to whose whole numbers clip bounds its input."""
    if op_name(reader) != "quantize":
        return False
    scale, bounds = scalar_of(reader.args[1]), [_number(bound) for bound in clip.args[1:]]
    if not scale or None in bounds:
        return False
    return all(
        abs(b / scale - round(b / scale)) < WHOLE for b in bounds if b is not None and math.isfinite(b)
    )


def _sources(elementwise: Mapping[Var, Expr], read: set[Var]) -> dict[Var, Var]:
    """Return for each value that is a function of one other that other; read values begin anew."""
    sources: dict[Var, Var] = {}
    for var, value in elementwise.items():
        behind = {v if v in read else sources.get(v, v) for v in used_vars(value)}
        if len(behind) != 1 or (var in read and dtype_of(var) != "float32"):
            continue
        (source,) = behind
        if dtype_of(source) == "float32":
            sources[var] = source
    return sources


def _steps(var: Var, source: Var, values: Mapping[Var, Expr]) -> tuple[tuple[Var, Expr], ...]:
    """Return the bindings between source and var, operands first."""
    steps: dict[Var, Expr] = {}
    stack = [var]
    while stack:
        missing = [v for v in used_vars(values[stack[-1]]) if v not in steps and not v.same_as(source)]
        if missing:
            stack.extend(missing)
        else:
            steps.setdefault(stack[-1], values[stack.pop()])
    return tuple(steps.items())


def _is_elementwise(var: Var, value: Expr, values: Mapping[Var, Expr]) -> bool:
    """Whether each element of value depends on the same element of its variables, and on numbers alone."""
    if op_name(value) == "" or _short(value) not in ELEMENTWISE or dtype_of(var) not in ("float32", "bool"):
        return False
    shape = shape_of(var)
    variables = list(used_vars(value))
    same = shape is not None and all(shape_of(v) == shape for v in variables)
    numbers = [arg for arg in value.args if not isinstance(arg, relax.Var)]
    known = all(_number(arg) is not None for arg in numbers)
    return bool(variables) and same and known and not _is_sum(value) and not _is_bias(value, values)


def _is_sum(value: Expr) -> bool:
    """Whether value is x + x: a sum of 16-bit integers, like that of any other two values."""
    return op_name(value) == "add" and len(set(used_vars(value))) == 1 < len(list(used_vars(value)))


def _is_bias(value: Expr, values: Mapping[Var, Expr]) -> bool:
    """Whether value adds the bias of a product that has but one output channel: a number all the same."""
    product = values.get(value.args[0]) if op_name(value) == "add" else None
    if op_name(product) not in WEIGHT_CHANNEL_AXIS:
        return False
    return int(value.ty.shape[-1 if op_name(product) == "matmul" else 1]) == 1


def _has_own_name(chain: Chain) -> bool:
    (_, call), *more = chain.steps
    return not more and unary_name(call.op.name, call.args) in UNARY_FUNCTIONS


def _number(arg: Expr) -> float | None:
    if isinstance(arg, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return float(arg.value)
    return scalar_of(arg)


def _short(call: Expr) -> str:
    return op_name(call).rsplit(".", 1)[-1]
