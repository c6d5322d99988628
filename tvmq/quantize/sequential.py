"""Decide weights and biases site by site, each on the inputs that the sites before it leave it.

A walk in topological order (lockstep.py): a site's weights are solved for its quantized inputs, its bias then
takes up the mean error that is left, so that what follows sees outputs of the right mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from tvm import relax

from tvmq.calibrate.constant_inputs import calmed, one_code
from tvmq.formats import QuantizedWeight, QuantParams
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import Node, Nodes
from tvmq.quantize.lockstep import Lockstep
from tvmq.quantize.moments import Moments, as_matrices, from_matrices, moments_of
from tvmq.quantize.site_weights import (
    OUTPUT_AXIS,
    bias_of,
    constant_of,
    input_params,
    kept_apart,
    limits_of,
    matrix_of,
    packs,
    shaped,
)
from tvmq.quantize.solve import solve
from tvmq.quantize.weights import nearest_of, scale_candidates, smallest_scales

Tensor = torch.Tensor
Floats = npt.NDArray[np.float64]

NONE_HIDDEN: Mapping[str, Tensor] = MappingProxyType({})


class Sequential:
    """The visitor; weights and biases are there once the walk is over."""

    def __init__(
        self,
        nodes: Nodes,
        formats: Formats,
        values: Mapping[str, QuantParams],
        copies: Mapping[str, QuantParams],
        *,
        power_of_two: bool,
        importance: Mapping[str, Tensor],
        shown: Mapping[str, Tensor] = NONE_HIDDEN,
        compensate: bool = True,
    ) -> None:
        """importance, shown: of output rows (importance.py), by the names of sites."""
        self._nodes, self._formats = nodes, formats
        self._values, self._copies = values, copies
        self._fused = swallowed(nodes, formats.integer)
        self._power_of_two = power_of_two
        self._importance, self._shown, self._compensate = importance, shown, compensate
        self.weights: dict[str, QuantizedWeight] = {}
        self.wanted: dict[str, Tensor] = {}  # what each weight was before it was rounded, shaped as it is
        self.biases: dict[str, npt.NDArray[np.float32]] = {}

    def before(self, var: relax.Var, streams: Lockstep) -> None:
        """Nothing is decided ahead."""

    def store(self, name: str, exact: Tensor, quantized: Tensor) -> tuple[QuantParams, ...]:
        """Return what was decided before."""
        copy = self._copies.get(name)
        return (self._values[name],) if copy is None else (self._values[name], copy)

    def weight(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Return the weight solved for the quantized inputs; None for a site that stays float."""
        if node.name not in self._formats.integer:
            return None
        bias = bias_of(self._nodes, node)
        bits = self._formats.weight_bits.get(node.name, 8)
        matrix, addends = self._calm(node, bias, exact)
        candidates = self._candidates(node, matrix, addends, bits)
        limits = limits_of(node, bits)
        halves = self._halves(node, exact, quantized, centred=bias is not None)
        if halves is None:
            nearest = nearest_of(matrix, None, candidates, bits, limits)
            values = kept_apart(node, shaped(node, nearest.values), bits)
            self.weights[node.name] = weight = replace(nearest, values=values)
            return torch.from_numpy(values) * scale_like(node, weight)
        # Of one batch there is no second half to choose the ridge by.
        compensate = self._compensate and len(exact) > 1
        matrices = as_matrices(node, torch.from_numpy(shaped(node, matrix.astype(np.float32))))
        groups, _, columns = matrices.shape
        scales = [torch.from_numpy(c.astype(np.float32)).reshape(groups, columns) for c in candidates]
        solved = solve(matrices, halves, scales, limits, compensate=compensate)
        values = from_matrices(node, solved.values).contiguous().to(torch.int8).numpy()
        values = kept_apart(node, values, bits)
        self.weights[node.name] = weight = QuantizedWeight(values, solved.scale.ravel().numpy(), bits)
        self.wanted[node.name] = from_matrices(node, solved.wanted).contiguous()
        return torch.from_numpy(values) * scale_like(node, weight)

    def _candidates(self, node: Node, matrix: Floats, addends: Floats, bits: int) -> list[Floats]:
        """Return the scales [outputs] to choose from, for a weight [K, outputs] and a bias [outputs]."""
        x = input_params(self._nodes, node, self._values, self._copies)
        out = self._values.get(final(node.name, self._fused))
        ratio = out.scale / x.scale if out is not None and self._power_of_two else None
        smallest = smallest_scales(matrix, addends, x, out)
        return scale_candidates(matrix, ratio, smallest, bits, gained=packs(node))

    def _calm(self, node: Node, bias: Node | None, exact: Tensor) -> tuple[Floats, Floats]:
        """Return the weight [K, N] to round for these inputs, and the bias [N] that goes with it."""
        matrix = matrix_of(node)
        if bias is None:
            return matrix, np.zeros(matrix.shape[1])
        addends = constant_of(bias).astype(np.float64).ravel()
        if node.kind != "linear":  # padding makes borders differ from what a convolution sees elsewhere
            return matrix, addends
        rows = exact.reshape(-1, exact.shape[-1])
        low, high = rows.amin(0).numpy(), rows.amax(0).numpy()
        step = input_params(self._nodes, node, self._values, self._copies).scale
        calm = calmed(matrix, one_code(low, high, step))
        return calm, addends + high.astype(np.float64) @ (matrix - calm)

    def _halves(
        self, node: Node, exact: Tensor, quantized: Tensor, *, centred: bool
    ) -> tuple[Moments, Moments] | None:
        """Return the moments of every second batch, and of the others."""
        importance, shown = self._importance.get(node.name), self._shown.get(node.name)
        counts = importance if shown is None else shown if importance is None else shown * importance

        def half(start: int) -> Moments | None:
            own = counts[start::2] if shown is not None and counts is not None else counts
            return moments_of(node, exact[start::2], quantized[start::2], own, centred=centred)

        first, second = half(0), half(1 % len(exact))
        return None if first is None or second is None else (first, second)

    def bias(self, node: Node, exact: Tensor, quantized: Tensor) -> Tensor | None:
        """Return the bias that leaves no mean error."""
        if node.inputs[0] not in self.weights:
            return None
        axis = -1 if self._nodes.by_name[node.inputs[0]].kind == "linear" else 1
        constant = torch.from_numpy(constant_of(node).copy())
        shown = self._shown.get(node.inputs[0])
        own = constant + _channel_means(exact - quantized, axis, shown).reshape(constant.shape)
        self.biases[node.name] = own.numpy()
        return own

    @property
    def storage(self) -> dict[str, tuple[QuantParams, ...]]:
        """Return how each value is kept: its storage, then that of its uint8 copy."""
        return {
            name: (own, self._copies[name]) if name in self._copies else (own,)
            for name, own in self._values.items()
        }

    def node(self, name: str) -> Node:
        """Return a node by its name."""
        return self._nodes.by_name[name]


def scale_like(node: Node, weight: QuantizedWeight) -> Tensor:
    """Return a weight's scales so that they broadcast to it."""
    scale = torch.from_numpy(weight.scale)
    shape = [1] * len(node.call.args[1].ty.shape)
    shape[OUTPUT_AXIS[node.kind]] = -1
    return scale.reshape(shape)


def _channel_means(value: Tensor, axis: int, shown: Tensor | None) -> Tensor:
    """Return the means [C] of values [S, ...], axis counted within one of the S; of the rows shown [S, R]."""
    axis = axis % (value.ndim - 1) + 1
    if shown is None or not shown.any():
        return value.double().mean([i for i in range(value.ndim) if i != axis]).float()
    rows = value.double().movedim(axis, -1).reshape(*shown.shape, -1)
    return ((rows * shown[:, :, None]).sum((0, 1)) / shown.sum(dtype=torch.float64)).float()
