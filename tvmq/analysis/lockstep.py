"""Evaluate a model in float and at level qdq on the same samples, as a whole and one site at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import tvm
from tvm import relax

from tvmq.passes.rebuild import bindings, used_vars
from tvmq.reference import Interpreter

Value = Any  # what the reference computes: a tensor, or a tuple of them
Known = Callable[[str], Value | None]


class Program:
    """The main of a module, each of its values by name."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.main = mod["main"]
        self.interpreter = Interpreter(mod)
        self.values = {binding.var: binding.value for binding in bindings(self.main)}
        # An output is bound once more under its own name: the first of a name is what computes it.
        self.variables = {var.name: var for var in reversed((*self.main.params, *self.values))}

    def run(self, batch: tuple[torch.Tensor, ...]) -> tuple[dict[str, Value], tuple[torch.Tensor, ...]]:
        """Return every value by name, and the outputs."""
        with torch.no_grad():
            values = self.interpreter.values(self.main, list(batch), None)
            result = self.interpreter.evaluate(self.main.body.body, values)
        outputs = tuple(result) if isinstance(result, tuple) else (result,)
        return {var.name: value for var, value in values.items()}, outputs

    def value(self, name: str, known: Known) -> torch.Tensor:
        """Compute one value from those that known gives; it returns None for what is to be computed."""
        with torch.no_grad():
            result: torch.Tensor = self._value(self.variables[name], known, {})
        return result

    def _value(self, var: relax.Var, known: Known, made: dict[Any, Value]) -> Value:
        if var in made:
            return made[var]
        value = known(var.name)
        if value is None:
            expr = self.values[var]
            made |= {used: self._value(used, known, made) for used in used_vars(expr)}
            value = self.interpreter.evaluate(expr, made)
        made[var] = value
        return value


def known_outside(floats: Mapping[str, Value], inside: frozenset[str]) -> Known:
    """Return the float values but for those named in inside; what else a name stands for is computed."""
    return lambda name: None if name in inside else floats.get(name)
