"""Run a canonical module in float and with quantized values side by side, node by node over all samples.

The quantized stream is what the integer program will compute, in floats: every stored value is rounded to its
storage after the node that makes it, and weights and biases are those that the visitor gives. So when the walk
comes to a site, the inputs that it will see stand beside the inputs that it should have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import torch
import tvm
from tvm import relax

from tvmq.formats import QuantParams
from tvmq.numerics import INTEGER_RANGE
from tvmq.passes.rebuild import bindings, used_vars
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.reference import Interpreter

Tensor = torch.Tensor
Tensors = Sequence[Tensor]  # one for each batch
MEMORY = 1 << 30  # bytes that the values of both streams may take at once


class Visitor(Protocol):
    """Decides numbers as the walk comes to them; every method may look at both streams."""

    def store(self, name: str, exact: Tensors, quantized: Tensors) -> tuple[QuantParams, ...]:
        """Return how a stored value is kept: its storage, then that of its uint8 copy if it has one.

        quantized: the value computed from quantized inputs, not yet rounded itself.
        """

    def weight(self, node: Node, exact: Tensors, quantized: Tensors) -> Tensor | None:
        """Return the weight that the quantized stream multiplies by; the tensors are the site's inputs."""

    def bias(self, node: Node, exact: Tensors, quantized: Tensors) -> Tensor | None:
        """Return the constant that the quantized stream adds; the tensors are the addition's results.

        quantized: with the bias of the float model.
        """


class Lockstep:
    """A module, its data and which of its values are stored."""

    def __init__(
        self,
        mod: tvm.IRModule,
        nodes: Nodes,
        batches: Sequence[Sequence[Tensor]],
        *,
        stored: Callable[[str], bool],
        reads_copy: Callable[[str], bool],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """stored: by value's name; reads_copy: by node's name, whether it reads uint8 copies of its inputs."""
        self._main = mod["main"]
        self._nodes = nodes
        self._batches = batches
        self._stored, self._reads_copy = stored, reads_copy
        self._progress = progress
        self._interpreter = Interpreter(mod)
        self._exact: dict[relax.Var, list[Any]] = {}
        self._quantized: dict[relax.Var, list[Any]] = {}
        self._copies: dict[relax.Var, list[Tensor]] = {}

    def walk(self, visitor: Visitor) -> None:
        """Visit every node in graph order; values are forgotten after their last use."""
        steps = list(bindings(self._main))
        last = last_uses(self._main)
        with torch.no_grad():
            for index, param in enumerate(self._main.params):
                values = [batch[index] for batch in self._batches]
                self._keep(param, values, values, visitor)
            for done, step in enumerate(steps, start=1):
                self._step(step.var, step.value, visitor)
                for var in last.get(step.var, ()):
                    for stream in (self._exact, self._quantized, self._copies):
                        stream.pop(var, None)
                self._progress(done, len(steps))
        for stream in (self._exact, self._quantized, self._copies):
            stream.clear()

    def _step(self, var: relax.Var, value: Any, visitor: Visitor) -> None:
        node = self._nodes.by_name[var.name]
        exact = self._evaluate(value, self._exact)
        stream: Mapping[relax.Var, list[Any]] = self._quantized
        if self._reads_copy(node.name):
            stream = {**self._quantized, **self._copies}
        replaced = None
        if node.kind in MULTIPLYING:
            source = value.args[0]
            replaced = visitor.weight(node, self._exact[source], stream[source])
        quantized = self._evaluate(value, stream, {1: replaced} if replaced is not None else {})
        if node.kind == "bias":
            own = visitor.bias(node, exact, quantized)
            if own is not None:
                place = next(i for i, arg in enumerate(value.args) if isinstance(arg, tvm.ir.GenericConst))
                quantized = self._evaluate(value, stream, {place: own})
        self._keep(var, exact, quantized, visitor)

    def _evaluate(
        self, value: Any, stream: Mapping[relax.Var, list[Any]], replaced: Mapping[int, Tensor] | None = None
    ) -> list[Any]:
        """Return the value of a binding for each batch; replaced: arguments of a call, by place."""
        read = set(used_vars(value))
        results = []
        for index in range(len(self._batches)):
            env = {var: stream[var][index] for var in read}
            if replaced:
                args = [
                    replaced[i] if i in replaced else self._interpreter.evaluate(arg, env)
                    for i, arg in enumerate(value.args)
                ]
                results.append(self._interpreter.apply(value, args))
            else:
                results.append(self._interpreter.evaluate(value, env))
        return results

    def _keep(self, var: relax.Var, exact: list[Any], quantized: list[Any], visitor: Visitor) -> None:
        self._exact[var] = exact
        if self._stored(var.name):
            own, *copy = visitor.store(var.name, exact, quantized)
            quantized = [rounded(value, own) for value in quantized]
            if copy:
                self._copies[var] = [rounded(value, copy[0]) for value in quantized]
        self._quantized[var] = quantized


def rounded(value: Tensor, params: QuantParams) -> Tensor:
    """Return value as its storage holds it, in floats."""
    low, high = limits(params)
    steps = torch.floor(value / params.scale + 0.5) + params.zero_point
    return (steps.clamp_(low, high) - params.zero_point) * params.scale


def limits(params: QuantParams) -> tuple[int, int]:
    """Return the least and the greatest integer of a storage."""
    return INTEGER_RANGE[params.dtype]


def last_uses(main: relax.Function) -> dict[relax.Var, tuple[relax.Var, ...]]:
    """Return binding -> the variables that nothing after it reads."""
    last: dict[relax.Var, relax.Var] = {}
    for binding in bindings(main):
        for var in (binding.var, *used_vars(binding.value)):
            last[var] = binding.var
    kept = set(used_vars(main.body.body))
    found: dict[relax.Var, list[relax.Var]] = {}
    for var, step in last.items():
        if var not in kept:
            found.setdefault(step, []).append(var)
    return {step: tuple(found[step]) for step in found}


def samples_within(main: relax.Function, memory: int = MEMORY) -> int:
    """Return how many batches fit: both streams' values of all of them live at once."""
    last, live, peak = last_uses(main), 0, 0
    live = sum(_bytes(param) for param in main.params)
    for binding in bindings(main):
        live += _bytes(binding.var)
        peak = max(peak, live)
        live -= sum(_bytes(var) for var in last.get(binding.var, ()))
    return max(1, memory // max(3 * peak, 1))  # two streams, and the uint8 copies of one


def _bytes(var: relax.Var) -> int:
    if not isinstance(var.ty, relax.TensorType) or var.ty.shape is None:
        return 0
    return 4 * prod(int(size) for size in var.ty.shape)
