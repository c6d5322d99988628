"""Run a canonical module in float and with quantized values side by side, node by node over all samples.

The quantized stream is what the integer program will compute, in floats: every stored value is rounded to
its storage after the node that makes it, and weights and biases are those that the visitor gives. So when the
walk comes to a site, the inputs that it will see stand beside the inputs that it should have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol, TypeVar

import torch
import tvm
from tvm import relax

from tvmq.formats import QuantParams
from tvmq.numerics import nearest_codes
from tvmq.passes.rebuild import bindings, used_vars
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.reference import Interpreter

Tensor = torch.Tensor
T = TypeVar("T")
Stream = Mapping[relax.Var, Any]  # values of all batches: tensors [S, ...], S batches
MEMORY = 1 << 30  # bytes that the values of both streams may take at once
CHUNK = 8  # batches that one operator computes together


class Visitor(Protocol):
    """Decides numbers as the walk comes to them, with both streams before it: tensors [S, ...], S batches."""

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Look at what is known before the binding of var is computed."""

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return how a stored value is kept: its storage, then that of its uint8 copy if it has one.

        quantized: the value computed from quantized inputs, not yet rounded itself.
        """

    def weight(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Return the weight that the quantized stream multiplies by; the tensors are the site's inputs."""

    def bias(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
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
        """stored: by value's name; reads_copy: by node's name, whether it reads its inputs' uint8 copies."""
        self._main = mod["main"]
        self._nodes = nodes
        self._batches = batches
        self._stored, self._reads_copy = stored, reads_copy
        self._progress = progress
        self.interpreter = Interpreter(mod)
        self._exact: dict[relax.Var, Any] = {}
        self._quantized: dict[relax.Var, Any] = {}
        self._copies: dict[relax.Var, Tensor] = {}

    def walk(self, visitor: Visitor) -> None:
        """Visit every node in graph order; values are forgotten after their last use."""
        steps = list(bindings(self._main))
        last = last_uses(self._main)
        self._progress(0, len(steps))
        with torch.no_grad():
            for index, param in enumerate(self._main.params):
                values = torch.stack([batch[index] for batch in self._batches])
                self._keep(param, values, values, visitor)
            for done, step in enumerate(steps, start=1):
                self._step(step.var, step.value, visitor)
                for var in last.get(step.var, ()):
                    for stream in (self._exact, self._quantized, self._copies):
                        stream.pop(var, None)
                self._progress(done, len(steps))
        for stream in (self._exact, self._quantized, self._copies):
            stream.clear()

    def exact(self, var: relax.Var) -> Tensor:
        """Return a live value of the float stream."""
        value: Tensor = self._exact[var]
        return value

    def quantized(self, var: relax.Var) -> tuple[Tensor, Tensor]:
        """Return a live value of the quantized stream as stored, and its uint8 copy (itself if none)."""
        value: Tensor = self._quantized[var]
        return value, self._copies.get(var, value)

    def _step(self, var: relax.Var, value: Any, visitor: Visitor) -> None:
        visitor.before(var, self)
        node = self._nodes.by_name.get(var.name)  # None inside of a chain of element-wise operators
        exact = self._evaluate(value, self._exact)
        stream: Stream = self._quantized
        if self._reads_copy(var.name):
            stream = {**self._quantized, **self._copies}
        own = None
        if node is not None and node.kind in MULTIPLYING:
            source = value.args[0]
            own = visitor.weight(node, self._exact[source], stream[source])
        quantized = self._evaluate(value, stream, {1: own} if own is not None else {})
        if node is not None and node.kind == "bias":
            own = visitor.bias(node, exact, quantized)
            if own is not None:
                place = next(i for i, arg in enumerate(value.args) if isinstance(arg, tvm.ir.GenericConst))
                quantized = self._evaluate(value, stream, {place: own})
        self._keep(var, exact, quantized, visitor)

    def _evaluate(self, value: Any, stream: Stream, replaced: Mapping[int, Tensor] | None = None) -> Any:
        """Return the value of a binding for all batches; replaced: arguments of a call, by place."""
        read = list(dict.fromkeys(used_vars(value)))

        def one(*values: Any) -> Any:
            env = dict(zip(read, values, strict=True))
            if not replaced:
                return self.interpreter.evaluate(value, env)
            args = [
                replaced[i] if i in replaced else self.interpreter.evaluate(arg, env)
                for i, arg in enumerate(value.args)
            ]
            return self.interpreter.apply(value, args)

        if not read:
            constant = one()
            return constant.expand(len(self._batches), *constant.shape)
        return batched(one, [stream[var] for var in read])

    def _keep(self, var: relax.Var, exact: Any, quantized: Any, visitor: Visitor) -> None:
        self._exact[var] = exact
        if self._stored(var.name):
            own, *copy = visitor.store(var.name, exact, quantized)
            quantized = rounded(quantized, own)
            if copy:
                self._copies[var] = rounded(quantized, copy[0])
        self._quantized[var] = quantized


def batched(one: Callable[..., Any], values: Sequence[Any]) -> Any:
    """Return one(...) for every index of the values' first axis, results along a first axis again.

    Values and results are tensors, or tuples of them. What is drawn at random is drawn for each by itself.
    """
    try:
        return torch.vmap(one, chunk_size=CHUNK, randomness="different")(*values)
    except (RuntimeError, NotImplementedError):  # an operator that torch cannot batch
        first = values[0]
        count = len(first[0] if isinstance(first, tuple) else first)
        return _stacked([one(*(_at(value, i) for value in values)) for i in range(count)])


def _at(value: Any, index: int) -> Any:
    return tuple(_at(field, index) for field in value) if isinstance(value, tuple) else value[index]


def _stacked(results: Sequence[Any]) -> Any:
    if isinstance(results[0], tuple):
        return tuple(_stacked(fields) for fields in zip(*results, strict=True))
    return torch.stack(tuple(results))


def rounded(value: Tensor, params: QuantParams) -> Tensor:
    """Return value as its storage holds it, in floats."""
    steps = (value / params.scale).add_(0.5).floor_().add_(params.zero_point).clamp_(params.low, params.high)
    if params.codes is not None:
        steps = torch.from_numpy(nearest_codes(params.codes)).float()[steps.long()]
    return steps.sub_(params.zero_point).mul_(params.scale)


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


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return so many items or fewer, from all over the sequence: data is often sorted by class."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


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
