"""Put scales, weights and biases together: everything insert_qdq needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tvmq.calibrate.calibration import Calibration, InputMoments
from tvmq.formats import Quantization, QuantizedWeight
from tvmq.one_thread import one_thread
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.progress import Progress, silent
from tvmq.quantize.feedback import Feedback, compensated, feedback_of
from tvmq.quantize.scales import choose_scales
from tvmq.quantize.site_weights import bias_of, constant_of, input_params, matrix_of, shaped
from tvmq.quantize.weights import corrected_bias, quantize_weight, smallest_scales

# Inputs [K]: beyond, a [K, K] matrix takes gigabytes, and weights are rounded by their own error instead.
WIDEST_GRAM = 8192


def gram_inputs(nodes: Nodes, formats: Formats) -> dict[str, str]:
    """Return site -> input value, for the sites whose Gram matrix calibration should keep."""
    return {
        node.name: node.inputs[0]
        for node in _sites(nodes, formats)
        if node.kind == "linear" and int(node.call.args[1].ty.shape[0]) <= WIDEST_GRAM
    }


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
    """Return all numbers of a planned module."""
    values, also = choose_scales(nodes, formats, calibration, method=method)
    fused = swallowed(nodes, formats.integer)
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, npt.NDArray[np.float32]] = {}
    feedback = _LastFeedback()
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
        smallest = smallest_scales(matrix, addends.ravel(), x, out)
        bits = formats.weight_bits.get(node.name, 8)
        chosen = quantize_weight(matrix, moments.gram if moments else None, ratio, smallest, bits)
        if moments is not None:
            spread = feedback.of(node.inputs[0], moments, centred=bias is not None)
            chosen = chosen if spread is None else compensated(matrix, chosen, spread)
        weights[node.name] = replace(chosen, values=shaped(node, chosen.values))
        if bias is not None and moments is not None:
            corrected = corrected_bias(addends.ravel(), matrix, chosen, moments.mean)
            biases[bias.name] = corrected.reshape(addends.shape)
        progress("quantize", done, len(work))
    if not work:
        progress("quantize", 1, 1)
    constants = {name: values[root] for name, root in formats.roots.items()}
    return Quantization(values, also, constants, weights, biases, formats.uint8_readers)


class _LastFeedback:
    """Keeps the last one: q, k and v read the same input, and making one takes longer than using it."""

    def __init__(self) -> None:
        self._key: tuple[str, bool] | None = None
        self._feedback: Feedback | None = None

    def of(self, source: str, moments: InputMoments, *, centred: bool) -> Feedback | None:
        """Return how errors spread for the input of this name."""
        if self._key != (source, centred):
            self._key, self._feedback = (source, centred), feedback_of(moments, centred=centred)
        return self._feedback


def _sites(nodes: Nodes, formats: Formats) -> Iterator[Node]:
    for node in nodes.by_name.values():
        if node.kind in MULTIPLYING and node.name in formats.integer:
            yield node
