"""Put scales, weights and biases together: everything insert_qdq needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.calibrate.constant_inputs import calmed, one_code
from tvmq.formats import Quantization, QuantizedWeight
from tvmq.one_thread import one_thread
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import MULTIPLYING, SITE_KINDS, Node, Nodes
from tvmq.progress import Progress, silent
from tvmq.quantize.moments import WIDEST, Moments, as_covariances, as_moments
from tvmq.quantize.rounding import Limits, damped, output_error, rounded_with_feedback
from tvmq.quantize.scales import choose_scales
from tvmq.quantize.site_weights import (
    bias_of,
    constant_of,
    input_params,
    kept_apart,
    limits_of,
    matrix_of,
    packs,
    shaped,
)
from tvmq.quantize.weights import corrected_bias, quantize_weight, smallest_scales


def gram_inputs(nodes: Nodes, formats: Formats) -> dict[str, str]:
    """Return site -> input value, for the sites whose second moments calibration should keep.

    The weights of wider ones are rounded by their own error instead.
    """
    return {
        node.name: node.inputs[0]
        for node in _sites(nodes, formats)
        if node.kind == "linear" and int(node.call.args[1].ty.shape[0]) <= WIDEST
    }


def ranges(nodes: Nodes, formats: Formats, calibration: Calibration, *, method: str = "mse") -> Quantization:
    """Return how the values of a planned module are stored; weights and biases are still to be chosen."""
    values, also = choose_scales(nodes, formats, calibration, method=method)
    constants = {name: values[root] for name, root in formats.roots.items()}
    left = frozenset(name for name, node in nodes.by_name.items() if node.kind in SITE_KINDS)
    return Quantization(values, also, constants, {}, {}, formats.uint8_readers, left - formats.integer)


@one_thread()
def choose(
    nodes: Nodes,
    formats: Formats,
    calibration: Calibration,
    *,
    method: str = "mse",
    requantize: str = "pot",
    progress: Progress = silent,
) -> Quantization:
    """Return all numbers of a planned module, from statistics alone."""
    stored = ranges(nodes, formats, calibration, method=method)
    values, also = stored.values, stored.also_uint8
    fused = swallowed(nodes, formats.integer)
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, npt.NDArray[np.float32]] = {}
    work = list(_sites(nodes, formats))
    progress("quantize", 0, max(len(work), 1))
    for done, node in enumerate(work, start=1):
        x = input_params(nodes, node, values, also)
        out = values.get(final(node.name, fused))
        ratio = out.scale / x.scale if out is not None and requantize == "pot" else None
        moments = calibration.linear_inputs.get(node.name)
        matrix = matrix_of(node)
        bias = bias_of(nodes, node)
        addends = np.zeros(matrix.shape[1]) if bias is None else constant_of(bias).astype(np.float64)
        calm, kept = matrix, addends.ravel()
        if moments is not None and bias is not None:
            calm = _calm(matrix, calibration.values.get(formats.source(nodes, node.inputs[0]) or ""), x.scale)
            kept = kept + moments.mean.astype(np.float64) @ (matrix - calm)
        smallest = smallest_scales(calm, kept, x, out)
        bits = formats.weight_bits.get(node.name, 8)
        # A bias makes up for the inputs' mean, so only their covariance counts.
        metric = None if moments is None else (as_moments if bias is None else as_covariances)(moments)
        weights[node.name] = chosen = _rounded(node, calm, metric, ratio, smallest, bits)
        if bias is not None and moments is not None:  # of a linear, whose values are a matrix as they are
            corrected = corrected_bias(addends.ravel(), matrix, chosen, moments.mean)
            biases[bias.name] = corrected.reshape(addends.shape)
        progress("quantize", done, len(work))
    if not work:
        progress("quantize", 1, 1)
    return replace(stored, weights=weights, biases=biases)


def _calm(matrix: npt.NDArray[np.float64], seen: ValueStats | None, step: float) -> npt.NDArray[np.float64]:
    """Return matrix [K, N] to round for inputs that look like this, kept in steps of this size."""
    if seen is None or seen.low_per_channel is None or seen.high_per_channel is None:
        return matrix
    constant = one_code(seen.low_per_channel, seen.high_per_channel, step)
    return calmed(matrix, constant) if len(constant) == len(matrix) else matrix


def _rounded(
    node: Node,
    matrix: npt.NDArray[np.float64],
    metric: Moments | None,
    ratio: float | None,
    smallest: npt.NDArray[np.float64],
    bits: int,
) -> QuantizedWeight:
    """Return matrix [K, N] as a site's weight of so many bits, shaped; the rest as for quantize_weight."""
    limits, gram = limits_of(node, bits), None if metric is None else metric.gram[0].numpy()
    chosen = quantize_weight(matrix, gram, ratio, smallest, bits, gained=packs(node), limits=limits)
    if metric is not None:
        chosen = _fed_back(matrix, chosen, metric, limits)
    return replace(chosen, values=kept_apart(node, shaped(node, chosen.values), bits))


def _fed_back(
    matrix: npt.NDArray[np.float64],
    nearest: QuantizedWeight,
    found: Moments,
    limits: Limits,
) -> QuantizedWeight:
    """Return matrix [K, N] rounded with error feedback at the scales of nearest, where that is less error."""
    metric = found.gram
    exact, scale = torch.from_numpy(matrix.astype(np.float32))[None], torch.from_numpy(nearest.scale)[None]
    before = torch.from_numpy(nearest.values.astype(np.float32))[None]
    after = rounded_with_feedback(exact, scale, damped(metric, found.rows), limits)
    errors = [output_error(exact, scale, metric, values) for values in (before, after)]
    values = torch.where(errors[1] < errors[0], after, before)[0]
    return replace(nearest, values=values.to(torch.int8).numpy())


def _sites(nodes: Nodes, formats: Formats) -> Iterator[Node]:
    for node in nodes.by_name.values():
        if node.kind in MULTIPLYING and node.name in formats.integer:
            yield node
