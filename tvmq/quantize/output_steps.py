"""Refine the steps of activations by a measure of their readers' outputs, weights quantized in turn.

Each of these chooses a value's step and the steps of the weights that it meets alternately, looking at the
products of some rows (EasyQuant, Wu et al. 2020, algorithm 1). The steps of weights are forgotten: solve.py
chooses them later, for what sites really see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from tvm import relax

from tvmq.calibrate.grids import FloatArray
from tvmq.calibrate.metrics import Cosine, Fisher, Metric, Pearson, Ranking, attention_maps
from tvmq.calibrate.output_search import (
    OutputBatch,
    OutputErrors,
    alternate,
    best_scale,
    linear_output,
    scale_factors,
)
from tvmq.formats import QuantParams
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import Node, Nodes
from tvmq.quantize.lockstep import Lockstep, evenly, rounded
from tvmq.quantize.moments import as_matrices, rows_of
from tvmq.quantize.readers import Readers
from tvmq.quantize.steps import Steps
from tvmq.quantize.weights import largest_value

Tensor = torch.Tensor

ROWS = 256  # of products that are looked at
HEADS = 8  # samples whose attention maps are
FACTORS = scale_factors(count=36)
SHIFTS = np.array([1.0, 0.5, 2.0, 0.25])  # what a copy's step may be times what it was


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is made small: of the outputs of products, and of attention maps if those are looked at."""

    product: Callable[[], Metric]
    maps: Callable[[], Metric] | None = None


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "cosine": Criterion(Cosine),  # EasyQuant
        "similarity": Criterion(Pearson, Ranking),  # Liu et al., NeurIPS 2021
        "fisher": Criterion(Fisher),  # PTQ4ViT, Yuan et al. 2022
    }
)


class OutputSteps(Steps):
    """The visitor; values and copies hold the refined storage once the walk is over."""

    def __init__(
        self,
        nodes: Nodes,
        formats: Formats,
        readers: Readers,
        values: Mapping[str, QuantParams],
        copies: Mapping[str, QuantParams],
        criterion: Criterion,
        gradients: Mapping[str, Tensor],
    ) -> None:
        """gradients: squared, of each site's output, shaped as it is; for the criterion "fisher"."""
        super().__init__(formats, readers, values, copies)
        self._nodes, self._criterion, self._gradients = nodes, criterion, gradients

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Choose the steps of an attention's q and k together: a shift must bring their product to its unit.

        What was computed of q and k so far was rounded with the steps that they had.
        """
        node = self._nodes.by_name.get(var.name)
        if node is None or node.kind != "attention" or self._criterion.maps is None:
            return
        names = [self._formats.source(self._nodes, name) for name in node.inputs[:2]]
        q, k = names
        if q is None or k is None or q == k or not all(self._movable(name, "int8") for name in (q, k)):
            return
        exact = [evenly(list(streams.exact(arg)), HEADS) for arg in node.call.args[:2]]
        errors = OutputErrors(self._criterion.maps(), len(FACTORS))
        for q_sample, k_sample in zip(*exact, strict=True):
            maps = _maps(node, q_sample, k_sample)
            for number, factor in enumerate(FACTORS):
                tried = (
                    rounded(q_sample, _scaled(self.values[q], factor)),
                    rounded(k_sample, _scaled(self.values[k], 1 / factor)),
                )
                errors.add(number, maps, _maps(node, *tried))
        for number in np.argsort(errors.errors(), kind="stable"):
            factor = float(FACTORS[number])
            moved = {q: _scaled(self.values[q], factor), k: _scaled(self.values[k], 1 / factor)}
            shifts = (
                self._readers.by_a_shift(name, own, self.values, self.copies) for name, own in moved.items()
            )
            if factor == 1 or all(shifts):
                self.values |= moved
                return

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return the storage whose products are nearest, that of statistics among the candidates."""
        own, copy = self.values[name], self.copies.get(name)
        sites = [reader.node for reader in self._readers.of(name) if reader.multiplies]
        every = len(sites) == len(self._readers.of(name))
        if _multiply_alike(sites) and (copy is not None or (every and self._movable(name, "uint8"))):
            stored = own if copy is None else copy
            source = quantized if copy is None else rounded(quantized, own)
            tried = self._searched(sites, source, stored, shifts_from=None if copy is None else own)
            if self._readers.by_a_shift(name, tried, self.values, self.copies):
                (self.values if copy is None else self.copies)[name] = tried
        return self.storage(name)

    def _movable(self, name: str, dtype: str) -> bool:
        return self.values[name].dtype == dtype and self._readers.alone(name)

    def _searched(
        self, sites: Sequence[Node], source: Tensor, stored: QuantParams, shifts_from: QuantParams | None
    ) -> QuantParams:
        """Return stored with another scale, for values [S, ...] that these sites read."""
        weights = [as_matrices(n, torch.from_numpy(n.call.args[1].value.numpy().copy())) for n in sites]
        weight = torch.cat([each[0] for each in weights], 1)
        bits = min(self._formats.weight_bits.get(node.name, 8) for node in sites)
        batches = [self._batch(sites, weight, value) for value in self._samples(sites[0], source)]
        output = linear_output(
            weight,
            bits=(stored.high - stored.low).bit_length(),
            weight_bits=bits,
            zero_point=stored.zero_point,
            symmetric=False,
        )
        steps = weight.abs().amax(0).clamp_min(1e-12).double().numpy() / largest_value(bits)
        scales: list[FloatArray] = [np.array(stored.scale), steps]
        metric = self._criterion.product()
        if shifts_from is None:
            found, _ = alternate(metric, batches, scales, output, factors=FACTORS)
            return _scaled(stored, float(found[0]) / stored.scale)
        allowed = SHIFTS[stored.scale * SHIFTS >= shifts_from.scale]
        best, _, _ = best_scale(metric, batches, scales, output, factors=allowed)
        return replace(stored, scale=float(best))

    def _samples(self, node: Node, source: Tensor) -> list[Tensor]:
        """Return as many of the batches as give ROWS rows of products."""
        rows = math.prod(node.shape) // node.shape[-1 if node.kind == "linear" else 1]
        return evenly(list(source), max(1, ROWS // rows))

    def _batch(self, sites: Sequence[Node], weight: Tensor, value: Tensor) -> OutputBatch:
        rows = torch.cat([part[0] for part in rows_of(sites[0], value)])
        thin = slice(None, None, max(1, len(rows) // ROWS))
        gradient = None
        if self._gradients:
            squares = [_as_rows(node, self._gradients[node.name]) for node in sites]
            gradient = torch.cat(squares, 1).sqrt()[thin]
        return OutputBatch((rows[thin],), rows[thin] @ weight, gradient)


def _multiply_alike(sites: Sequence[Node]) -> bool:
    """Whether one matrix product has all their outputs as columns: linears, or one convolution."""
    if not sites:
        return False
    if all(node.kind == "linear" for node in sites):
        return len({node.call.args[1].ty.shape[0] for node in sites}) == 1
    return len(sites) == 1 and sites[0].kind == "conv2d" and int(sites[0].call.attrs.groups) == 1


def _as_rows(node: Node, value: Tensor) -> Tensor:
    """Return a site's output as [rows, outputs]."""
    value = value if node.kind == "linear" else value.movedim(1, -1)
    return value.reshape(-1, value.shape[-1])


def _scaled(params: QuantParams, factor: float) -> QuantParams:
    return replace(params, scale=float(np.float32(params.scale * factor)))


def _maps(node: Node, q: Tensor, k: Tensor) -> Tensor:
    """Return the attention maps [rows, keys] of q and k, each [batch, tokens, heads, head_dim]."""
    scale = node.call.attrs.scale
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return attention_maps(q.transpose(1, 2), k.transpose(1, 2), factor)
