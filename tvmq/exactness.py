"""Which values of an integer module have the same bits on every machine, and which only nearly.

What is computed by integer functions, by views, or by one rounding from exact operands is exact. Any other
float operation is not: sums associate as the compiler likes, a multiply and an add may become one, and exp is
whatever the machine's math library says. Where such a value is quantized again, a code may come out one step
off; such a binding is an entry. Everything after an entry is exact once the entry's codes are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.composites import attributes
from tvmq.passes.rebuild import bindings, dtype_of, op_name, operands, sequence, substitute, used_vars
from tvmq.sites import MOVES

# One correctly rounded operation, or none: every IEEE machine agrees.
ROUNDED_ONCE = MOVES | {"quantize", "dequantize", "nn.relu", "clip", "maximum", "minimum", "abs"}
CHOOSING = {"argmax", "argmin", "max", "min", "where"}
COMPARING = {"equal", "not_equal", "greater", "greater_equal", "less", "less_equal"}
EXACT = ROUNDED_ONCE | CHOOSING | COMPARING


@dataclass(frozen=True, slots=True)
class Exactness:
    """How the bits of one value come about."""

    float_ops: tuple[str, ...] = ()  # inexact float operations since the inputs or the last entries, in order
    portable: bool = True  # no inexact operation before it at all


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """The exactness of every value of main."""

    values: Mapping[Any, Exactness]  # by variable
    entries: tuple[Any, ...]  # variables in graph order

    def of(self, expr: Any) -> Exactness:
        """Return the exactness of a variable, a constant, or a tuple of them."""
        return _joined(self.values.get(var, Exactness()) for var in used_vars(expr))


def analyse(mod: tvm.IRModule) -> Analysis:
    """Return how exact each value of an integer module's main is."""
    values: dict[Any, Exactness] = {}
    entries = []
    for binding in bindings(mod["main"]):
        value = binding.value
        before = _joined(values.get(var, Exactness()) for var in used_vars(value))
        if isinstance(binding.var.ty, relax.TupleType) and not isinstance(value, relax.Call):
            values[binding.var] = before
        elif before.float_ops and not _is_float(binding.var):
            entries.append(binding.var)
            values[binding.var] = Exactness((), portable=False)
        elif _is_exact(mod, value, binding.var):
            values[binding.var] = before
        else:
            name = op_name(value).rsplit(".", 1)[-1] or "float function"
            values[binding.var] = Exactness((*before.float_ops, name), portable=False)
    return Analysis(values, tuple(entries))


def with_given_entries(mod: tvm.IRModule, entries: tuple[Any, ...]) -> tvm.IRModule:
    """Return mod with the readers of each entry reading a new last parameter instead; entries stay bound."""
    main = mod["main"]
    given = {var: relax.Var(f"{var.name}.given", var.ty) for var in entries}
    bound = [relax.VarBinding(b.var, substitute(b.value, given)) for b in bindings(main)]
    body = sequence([relax.DataflowBlock(bound)], substitute(main.body.body, given))
    func = relax.Function([*main.params, *given.values()], body, main.ret_ty, main.is_pure, main.attrs)
    result = mod.clone()
    result.update_func(mod.get_global_var("main"), func)
    return result


def _is_exact(mod: tvm.IRModule, value: Any, var: Any) -> bool:
    if not isinstance(value, relax.Call):
        return True
    if isinstance(value.op, tvm.ir.GlobalVar):
        return bool(attributes(mod[value.op]))
    if op_name(value) in EXACT:
        return True
    return not any(_is_float(expr) for expr in (var, *operands(value)))


def _joined(parts: Iterator[Exactness]) -> Exactness:
    seen: dict[str, None] = {}
    portable = True
    for part in parts:
        seen |= dict.fromkeys(part.float_ops)
        portable = portable and part.portable
    return Exactness(tuple(seen), portable)


def _is_float(expr: Any) -> bool:
    if isinstance(expr.ty, relax.TupleType):
        return any(str(getattr(field, "dtype", "")).startswith("float") for field in expr.ty.fields)
    return dtype_of(expr).startswith("float")
