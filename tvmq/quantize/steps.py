"""Refine the steps of activations on what reaches the outputs of their readers, weights still float.

The framework level of Li et al., "An adaptive outlier correction quantization method for vision Transformers"
(2025): steps are settled before weights are touched. An error in channel c of a site's input changes its
output by that error times row c of its weight, so errors are weighted by the squared norms of these rows;
what channels do to each other is left out, since rounding errors of different channels are hardly correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from tvm import relax

from tvmq.formats import QuantParams
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import Node
from tvmq.quantize.codebook import coded
from tvmq.quantize.lockstep import Lockstep, rounded
from tvmq.quantize.readers import Readers
from tvmq.quantize.step_candidates import moved, narrowed
from tvmq.reference_ops import OPERATORS

Tensor = torch.Tensor

MOST_ROWS = 1 << 12
FIRST_ROWS, FINALISTS = 1 << 9, 12


class Steps:
    """The visitor; values and copies hold the refined storage once the walk is over."""

    def __init__(
        self,
        formats: Formats,
        readers: Readers,
        values: Mapping[str, QuantParams],
        copies: Mapping[str, QuantParams],
    ) -> None:
        self._formats, self._readers = formats, readers
        self.values, self.copies = dict(values), dict(copies)

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Nothing is decided ahead."""

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return the storage of least weighted error, that of statistics among the candidates."""
        own, copy = self.values[name], self.copies.get(name)
        readers = self._readers.of(name)
        energy = self._energy(name, every=copy is None)
        if copy is not None and energy is not None:
            rows = self._rows(name, rounded(quantized, own), energy)
            self.copies[name] = self._best(name, rows, energy, moved(own, copy), _as_it_is)
        elif copy is None and own.dtype == "uint8" and self._readers.alone(name):
            bits = self._formats.values[name].bits
            through: Callable[[Tensor], Tensor] = _as_it_is
            if energy is None and len(readers) == 1 and readers[0].node.kind == "unary":
                table, bits = readers[0].node, 8
                energy, through = self._energy(table.name, every=True), _function(table)
                energy = None if table.chain is not None or len(table.call.args) != 1 else energy
            if energy is not None:
                rows = self._rows(name, quantized, energy)
                candidates = [*narrowed(float(rows.min()), float(rows.max()), own, bits)]
                if bits < 8 and self._readers.by_a_table(name):
                    candidates.append(coded(rows, energy, bits))
                self.values[name] = self._best(name, rows, energy, candidates, through)
        return self.storage(name)

    def storage(self, name: str) -> tuple[QuantParams, ...]:
        """Return how a value is kept now: its storage, then that of its uint8 copy if it has one."""
        copy = self.copies.get(name)
        return (self.values[name],) if copy is None else (self.values[name], copy)

    def weight(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Leave weights alone."""
        return None

    def bias(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Leave biases alone."""
        return None

    def _energy(self, name: str, *, every: bool) -> Tensor | None:
        """Return what an error in each channel [C] counts; None if the weights of readers do not say it.

        every: whether readers that do not multiply forbid an answer.
        """
        readers = self._readers.of(name)
        energies = [_row_energy(reader.node) for reader in readers if reader.multiplies]
        if not energies or len({len(each) for each in energies}) > 1:
            return None
        return torch.stack(energies).sum(0) if not every or len(energies) == len(readers) else None

    def _rows(self, name: str, values: Tensor, energy: Tensor) -> Tensor:
        """Return rows [R, C] of values [S, ...] of S batches, thinned out."""
        image = self._readers.is_image(name)
        rows = (values.movedim(2, -1) if image else values).reshape(-1, len(energy))
        step = math.ceil(len(rows) / MOST_ROWS)
        return rows[:: step | 1] if step > 1 else rows

    def _best(
        self,
        name: str,
        rows: Tensor,
        energy: Tensor,
        candidates: Iterable[QuantParams],
        through: Callable[[Tensor], Tensor],
    ) -> QuantParams:
        """Return the candidate of least weighted error, seen through a function.

        Only what keeps a requantize a shift comes in the place of the first, which is that of statistics.
        """
        options: list[QuantParams] = list(candidates)

        def ranked(tried: list[int], some: Tensor) -> list[int]:
            exact = through(some)
            errors = [
                float(((through(rounded(some, options[index])) - exact).square().sum(0) * energy).sum())
                for index in tried
            ]
            return [tried[place] for place in np.argsort(errors, kind="stable")]

        # All on some of the rows, and the best of them on the rest.
        first = ranked(list(range(len(options))), rows[:: math.ceil(len(rows) / FIRST_ROWS) | 1])
        finalists = sorted({0, *first[:FINALISTS]})
        kept = (
            index
            for index in ranked(finalists, rows)
            if index == 0 or self._readers.by_a_shift(name, options[index], self.values, self.copies)
        )
        return options[next(kept)]


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _function(table: Node) -> Callable[[Tensor], Tensor]:
    """Return what a table of one operator computes."""

    operator = OPERATORS[table.call.op.name.removeprefix("relax.")]

    def function(x: Tensor) -> Tensor:
        found: Tensor = operator([x], table.call.attrs, table.call)
        return found

    return function


def _row_energy(node: Node) -> Tensor:
    """Return the squared norms [C] of the rows of a product's weight."""
    weight = torch.from_numpy(node.call.args[1].value.numpy())
    if node.kind == "linear":
        return weight.square().sum(1)
    groups = int(node.call.attrs.groups)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.square().sum((1, 3, 4)).ravel()
