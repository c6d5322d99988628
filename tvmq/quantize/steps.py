"""Refine the steps of activations on what reaches the outputs of their readers, weights still float.

The framework level of Li et al., "An adaptive outlier correction quantization method for vision Transformers"
(2025): steps are settled before weights are touched. An error in channel c of a site's input changes its
output by that error times row c of its weight, so errors are weighted by the squared norms of these rows;
what channels do to each other is left out, since rounding errors of different channels are hardly correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product

import numpy as np
import torch
from tvm import relax

from tvmq.calibrate.grids import affine_parameters
from tvmq.formats import QuantParams
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import Node, Nodes
from tvmq.quantize.lockstep import Lockstep, rounded
from tvmq.reference_ops import OPERATORS

Tensor = torch.Tensor

FACTORS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36)  # of the range seen, at either end
MOST_ROWS = 1 << 12
PLACES = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the zero point of a uint8 copy, times what it was
EXPONENTS = (-2, -1, 0, 1)  # of the scale of a uint8 copy, around what statistics chose


class Steps:
    """The visitor; values and copies hold the refined storage once the walk is over."""

    def __init__(
        self,
        nodes: Nodes,
        formats: Formats,
        values: Mapping[str, QuantParams],
        copies: Mapping[str, QuantParams],
    ) -> None:
        self._nodes, self._formats = nodes, formats
        self.values, self.copies = dict(values), dict(copies)

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Nothing is decided ahead."""

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return the storage of least weighted error, that of statistics among the candidates."""
        own = self.values[name]
        copy = self.copies.get(name)
        readers = list(self._readers(name))
        energies = [energy for reader, energy in readers if energy is not None]
        energies = energies if len({len(each) for each in energies}) == 1 else []
        energy = torch.stack(energies).sum(0) if energies else torch.empty(0)
        if copy is not None and energies:
            rows = _rows(rounded(quantized, own), energy)
            self.copies[name] = copy = _best(rows, energy, _moved(own, copy))
        elif own.dtype == "uint8" and energies and len(energies) == len(readers) and self._alone(name):
            rows = _rows(quantized, energy)
            self.values[name] = own = _best(rows, energy, _ranges(rows, own, self._formats.values[name].bits))
        elif (
            own.dtype == "uint8" and len(readers) == 1 and readers[0][0].kind == "unary" and self._alone(name)
        ):
            self.values[name] = own = self._before_table(readers[0][0], quantized, own)
        return (own,) if copy is None else (own, copy)

    def weight(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Leave weights alone."""
        return None

    def bias(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Leave biases alone."""
        return None

    def _before_table(self, table: Node, quantized: Tensor, own: QuantParams) -> QuantParams:
        """Return the storage of a table's input of which the table's readers see least."""
        energies = [energy for _, energy in self._readers(table.name)]
        known = [energy for energy in energies if energy is not None]
        if (
            len({len(energy) for energy in known}) != 1
            or len(known) < len(energies)
            or len(table.call.args) != 1
            or table.chain is not None
        ):
            return own
        rows, energy = _rows(quantized, known[0]), torch.stack(known).sum(0)

        def through(x: Tensor) -> Tensor:
            name = table.call.op.name.removeprefix("relax.")
            found: Tensor = OPERATORS[name]([x], table.call.attrs, table.call)
            return found

        return _best(rows, energy, _ranges(rows, own, 8), through)

    def _alone(self, name: str) -> bool:
        """Whether no other value shares the scale."""
        region = self._formats.values[name].region
        return sum(fmt.region == region for fmt in self._formats.values.values()) == 1

    def _readers(self, name: str) -> Iterator[tuple[Node, Tensor | None]]:
        """Yield what reads a value, with the squared norms [C] of its weight's rows if it has one."""
        for user in self._nodes.consumers.get(name, ()):
            node = self._nodes.by_name.get(user)
            if node is None:
                continue
            if node.kind == "view" and node.op == "reshape":
                for reader, energy in self._readers(user):
                    # A map that is flattened has other channels for its reader than for a convolution.
                    shape = self._shape(name)
                    flat = len(shape) == 4 and len(node.shape) == 2 and shape[1] != node.shape[1]
                    yield reader, None if flat else energy
            elif self._copied(name) and user not in self._formats.uint8_readers:
                continue
            elif user in self._formats.integer and node.kind in ("linear", "conv2d", "depthwise"):
                yield node, _energy(node)
            else:
                yield node, None

    def _shape(self, name: str) -> tuple[int, ...]:
        node = self._nodes.by_name.get(name)
        return () if node is None else node.shape

    def _copied(self, name: str) -> bool:
        return name in self.copies


def _energy(node: Node) -> Tensor:
    weight = torch.from_numpy(node.call.args[1].value.numpy())
    if node.kind == "linear":
        return weight.square().sum(1)
    groups = int(node.call.attrs.groups)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.square().sum((1, 3, 4)).ravel()


def _rows(values: Tensor, energy: Tensor) -> Tensor:
    """Return rows [R, C] of values [S, ...] of S batches, thinned out."""
    channels = len(energy)
    image = values.ndim == 5 and values.shape[2] == channels
    rows = (values.movedim(2, -1) if image else values).reshape(-1, channels)
    step = math.ceil(len(rows) / MOST_ROWS)
    return rows[:: step | 1] if step > 1 else rows


def _best(
    rows: Tensor,
    energy: Tensor,
    candidates: Iterator[QuantParams],
    through: Callable[[Tensor], Tensor] = lambda x: x,
) -> QuantParams:
    """Return the first candidate of least weighted error, seen through a function."""
    options, exact = list(candidates), through(rows)
    errors = [
        float(((through(rounded(rows, option)) - exact).square().sum(0) * energy).sum()) for option in options
    ]
    return options[int(np.argmin(errors))]


def _ranges(rows: Tensor, own: QuantParams, bits: int) -> Iterator[QuantParams]:
    yield own
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    for at_low, at_high in product(FACTORS, FACTORS):
        if (low == 0 and at_low != 1) or (high == 0 and at_high != 1):
            continue
        scale, zero = affine_parameters(np.array([low * at_low, high * at_high]), bits, False)
        yield QuantParams(float(np.float32(scale)), int(zero), own.dtype, own.limits)


def _moved(trunk: QuantParams, own: QuantParams) -> Iterator[QuantParams]:
    """Yield uint8 storages that a shift reaches from the trunk, with the zero point in several places."""
    yield own
    for step in EXPONENTS:
        scale = own.scale * 2.0**step
        if scale < trunk.scale:
            continue
        centre = own.zero_point / 2.0**step
        for zero in sorted({round(centre * factor) for factor in PLACES} | {(own.high + 1) // 2}):
            yield QuantParams(scale, int(np.clip(zero, own.low, own.high)), own.dtype, own.limits)
