"""Choose the scale of every stored value from calibration.

A requantize is a shift when the ratio of scales is a power of two, and that is all that is asked: activations
take the scale that calibration likes best, and each weight channel follows as 2**-k of their ratio
(weights.py). Two ties remain: one scale per region of values joined by adds, and the
logits of attention, which a shift must bring to the unit of the softmax table.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping

import numpy as np

from tvmq import numerics
from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.calibrate.grids import affine_parameters
from tvmq.calibrate.observers import observer_for
from tvmq.calibrate.range_errors import expected_error
from tvmq.formats import QuantParams, ValueFormat
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import Node, Nodes

TRUNK_HEADROOM = 1.5  # int16 has bits to spare for inputs that calibration did not see
GELU_FLOOR = -3.6  # gelu below this is within 6e-4 of zero: no code is spent on it
FLOORED = ("gelu", "gelu_tanh")


def choose_scales(
    nodes: Nodes, formats: Formats, calibration: Calibration, *, method: str = "mse"
) -> tuple[dict[str, QuantParams], dict[str, QuantParams]]:
    """Return (storage of each value, second uint8 storage of int16 values), both by value name."""
    regions: dict[str, list[str]] = {}
    for name, fmt in formats.values.items():
        regions.setdefault(fmt.region, []).append(name)
    chosen: dict[str, QuantParams] = {}
    tables = {name: _largest(node) for name, node in nodes.by_name.items() if node.kind == "embedding"}
    for members in regions.values():
        chosen |= _region(members, formats.values, calibration.values, tables, method)
    _tie_logits(nodes, chosen)
    also = {
        name: _as_uint8(calibration.values[name], chosen[name], method)
        for name, fmt in formats.values.items()
        if fmt.also_uint8
    }
    return chosen, also


def _region(
    members: list[str],
    formats: Mapping[str, ValueFormat],
    stats: Mapping[str, ValueStats],
    tables: Mapping[str, float],
    method: str,
) -> dict[str, QuantParams]:
    """Return one storage for all values of a region; the widest range decides.

    tables: the largest absolute number of each embedding, of which calibration sees a few rows.
    """
    dtype = max((formats[name].dtype for name in members), key=_width)
    if dtype == "int16":
        reach = max(max(-stats[n].histogram.minimum, stats[n].histogram.maximum) for n in members)
        reach = max(reach * TRUNK_HEADROOM, *(tables.get(n, 0.0) for n in members), 1e-30)
        copies = [stats[n].quantizer(8, False, method)[0] for n in members if formats[n].also_uint8]
        scale = _float32(_in_phase(reach / 32767, copies))
        return {name: QuantParams(scale, 0, dtype) for name in members}
    symmetric = dtype == "int8"
    ranges = [observer_for(method, stats[name].histogram).range(8, symmetric) for name in members]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if any(formats[name].unary in FLOORED for name in members):
        low = max(low, GELU_FLOOR)
    step, zero = affine_parameters(np.array([low, high]), 8, symmetric)
    params = QuantParams(_float32(float(step)), int(zero), dtype)
    return dict.fromkeys(members, params)


def _in_phase(scale: float, wanted: list[float]) -> float:
    """Return scale, enlarged by less than 2, of which powers of two come nearest to the wanted scales.

    The uint8 copies of int16 values have such scales; 16 bits can spare the factor.
    """
    turns = [math.log2(step / scale) for step in wanted if step > 0]
    mean = sum((cmath.exp(2j * math.pi * turn) for turn in turns), 0j)
    return scale * math.exp2(cmath.phase(mean) / (2 * math.pi) % 1.0)


def _largest(embedding: Node) -> float:
    return float(np.abs(embedding.call.args[0].value.numpy()).max(initial=0.0))


def _width(dtype: str) -> int:
    return numerics.INTEGER_RANGE[dtype][1]


def _float32(value: float) -> float:
    return float(np.float32(value))


def _tie_logits(nodes: Nodes, chosen: dict[str, QuantParams]) -> None:
    """Move the scales of q and k, each by at most 2**0.25, so that a shift gives logits their unit.

    scale_q * scale_k * softmax_scale * log2(e) * STEPS_PER_OCTAVE = 2**-n. Only logits that might reach 2**30
    of these units make them smaller.
    """
    for node in nodes.by_name.values():
        if node.kind != "attention":
            continue
        q, k = (_source(nodes, name, chosen) for name in node.inputs[:2])
        if q is None or k is None or q == k:
            continue
        unit = _softmax_scale(node) * math.log2(math.e) * numerics.STEPS_PER_OCTAVE
        exponent = -math.log2(chosen[q].scale * chosen[k].scale * unit)
        target = max(round(exponent), numerics.least_score_shift(node.shape[-1]))
        factor = 2.0 ** ((exponent - target) / 2)
        scale_k = _float32(chosen[k].scale * factor)
        scale_q = _float32(2.0**-target / unit / scale_k)
        chosen[k] = QuantParams(scale_k, 0, chosen[k].dtype)
        chosen[q] = QuantParams(scale_q, 0, chosen[q].dtype)


def _source(nodes: Nodes, name: str, chosen: Mapping[str, QuantParams]) -> str | None:
    """Return the stored int8 value behind a view, None if there is none."""
    while name not in chosen:
        node = nodes.by_name.get(name)
        if node is None or node.kind != "view" or len(node.inputs) != 1:
            return None
        name = node.inputs[0]
    return name if chosen[name].dtype == "int8" else None


def _softmax_scale(node: Node) -> float:
    scale = node.call.attrs.scale
    return float(node.shape[-1]) ** -0.5 if scale is None else float(scale)


def _as_uint8(stats: ValueStats, trunk: QuantParams, method: str) -> QuantParams:
    """Return the uint8 storage of an int16 value that a shift reaches: the better of two exponents."""
    wanted, _ = stats.quantizer(8, False, method)
    low = min(stats.histogram.minimum, 0.0)
    exponents = [max(0, math.floor(math.log2(wanted / trunk.scale)) + step) for step in (0, 1)]
    scales = np.array([trunk.scale * 2.0**e for e in exponents])
    zeros = np.clip(np.floor(-max(low, -255 * wanted) / scales + 0.5), 0, 255)
    errors = expected_error(stats.histogram, scales, zeros, 8, False)
    best = int(errors.argmin())
    return QuantParams(float(scales[best]), int(zeros[best]), "uint8")
