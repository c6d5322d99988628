"""The slow mode: weights rounded unit by unit by gradient descent, from those solved in closed form.

A walk in topological order: before a unit is computed, the rounding of its weights is trained on what the
units before it leave it (reconstruct.py); biases then take up the mean error, as in sequential.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tvm import relax

from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.plan.nodes import Node
from tvmq.quantize.lockstep import Lockstep, batched
from tvmq.quantize.reconstruct import Rounding, Task, reconstruct, row_weights, token_weights
from tvmq.quantize.sequential import Sequential, scale_like
from tvmq.quantize.site_weights import kept_apart, limits_of
from tvmq.quantize.units import Unit

Tensor = torch.Tensor


class Adapt:
    """The visitor; its weights and biases replace those of `solved` once the walk is over."""

    def __init__(
        self,
        solved: Sequential,
        stretches: tuple[Unit, ...],
        *,
        reads_copy: Callable[[str], bool],
        importance: Mapping[str, Tensor],
        images: frozenset[str],
        steps: int,
        seed: int,
    ) -> None:
        """importance: of the rows of a unit's results, by name; images: the values laid out [N, C, H, W];
        steps: of each unit's training.
        """
        self._solved = solved
        self._units = {unit.steps[0].var: unit for unit in stretches}
        self._reads_copy = reads_copy
        self._importance, self._images = importance, images
        self._steps, self._seed = steps, seed
        self.weights: dict[str, QuantizedWeight] = dict(solved.weights)
        self.losses: list[tuple[str, float, float]] = []  # of each unit: its result's name, before, after

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Train the unit that begins here."""
        unit = self._units.get(var)
        if unit is None:
            return
        names = [step.var.name for step in unit.steps if step.var.name in self._solved.wanted]
        roundings = {name: self._rounding(name) for name in names}
        if not roundings:
            return
        start = {name: self._real(name) for name in roundings}
        before, after = reconstruct(
            self._task(unit, streams),
            roundings,
            start,
            streams.interpreter,
            steps=self._steps,
            seed=self._seed,
        )
        self.losses.append((unit.results[-1].name, before, min(before, after)))
        if after >= before:
            return
        for name, rounding in roundings.items():
            solved = self.weights[name]
            values = rounding.values().to(torch.int8).numpy()
            self.weights[name] = QuantizedWeight(values, solved.scale, solved.bits)

    def _task(self, unit: Unit, streams: Lockstep) -> Task:
        quantized, copy = streams.quantized(unit.source)
        targets = _float_results(unit, streams)
        return Task(
            unit,
            quantized,
            copy,
            tuple(streams.exact(other) for other in unit.others),
            targets,
            tuple(
                self._weights_of(str(var.name), target)
                for var, target in zip(unit.results, targets, strict=True)
            ),
            self._solved.storage,
            self._reads_copy,
            {name: torch.from_numpy(bias) for name, bias in self._solved.biases.items()},
        )

    def _weights_of(self, name: str, target: Tensor) -> Tensor:
        importance, image = self._importance.get(name), name in self._images
        if importance is None:
            return token_weights(target, image=image)
        return row_weights(target, importance, image=image)

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return what was decided before."""
        return self._solved.store(name, exact, quantized)

    def weight(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Return the trained weight."""
        return self._real(node.name) if node.name in self.weights else None

    def bias(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Return the bias that leaves no mean error."""
        return self._solved.bias(node, exact, quantized)

    def _real(self, name: str) -> Tensor:
        weight = self.weights[name]
        return torch.from_numpy(weight.values) * scale_like(self._solved.node(name), weight)

    def _rounding(self, name: str) -> Rounding:
        weight = self._solved.weights[name]
        node = self._solved.node(name)

        def settled(values: Tensor) -> Tensor:
            return torch.from_numpy(kept_apart(node, values.numpy(), weight.bits))

        limits = limits_of(node, weight.bits)
        return Rounding(self._solved.wanted[name], scale_like(node, weight), limits, settled)


def _float_results(unit: Unit, streams: Lockstep) -> tuple[Tensor, ...]:
    def one(source: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        env = dict(zip((unit.source, *unit.others), (source, *others), strict=True))
        for step in unit.steps:
            env[step.var] = streams.interpreter.evaluate(step.value, env)
        return tuple(env[var] for var in unit.results)

    results: tuple[Tensor, ...] = batched(one, [streams.exact(var) for var in (unit.source, *unit.others)])
    return results
