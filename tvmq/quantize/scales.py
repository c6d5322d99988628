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
from dataclasses import replace

import numpy as np

from tvmq import numerics
from tvmq.calibrate.calibration import Calibration, ValueStats
from tvmq.calibrate.grids import affine_parameters
from tvmq.calibrate.observers import observer_for
from tvmq.calibrate.range_errors import expected_error
from tvmq.formats import QuantParams, ValueFormat, code_limits
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import Node, Nodes
from tvmq.quantize.weights import largest_reached

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
    trunks = [members for members in regions.values() if _dtype(members, formats.values) == "int16"]
    for members in regions.values():
        if members not in trunks:
            chosen |= _region(members, formats.values, calibration.values, method)
    finest = _finest_trunk(nodes, formats, calibration.values, chosen, method)
    for members in trunks:
        chosen |= _trunk(members, formats.values, calibration.values, tables, finest, method)
    chosen = {name: chosen[name] for members in regions.values() for name in members}
    _tie_logits(nodes, chosen)
    also = {
        name: _as_uint8(calibration.values[name], chosen[name], method, fmt.bits)
        for name, fmt in formats.values.items()
        if fmt.also_uint8
    }
    return chosen, also


def _dtype(members: list[str], formats: Mapping[str, ValueFormat]) -> str:
    return max((formats[name].dtype for name in members), key=_width)


def _trunk(
    members: list[str],
    formats: Mapping[str, ValueFormat],
    stats: Mapping[str, ValueStats],
    tables: Mapping[str, float],
    finest: Mapping[str, float],
    method: str,
) -> dict[str, QuantParams]:
    """Return one int16 storage for all values of a region, wide enough for each.

    tables: the largest absolute number of each embedding, of which calibration sees a few rows.
    """
    reach = max(max(-stats[n].histogram.minimum, stats[n].histogram.maximum) for n in members)
    reach = max(reach * TRUNK_HEADROOM, *(tables.get(n, 0.0) for n in members), 1e-30)
    least = max(reach / 32767, *(finest.get(n, 0.0) for n in members))
    copies = [stats[n].quantizer(formats[n].bits, False, method)[0] for n in members if formats[n].also_uint8]
    return dict.fromkeys(members, QuantParams(_float32(_in_phase(least, copies)), 0, "int16"))


def _finest_trunk(
    nodes: Nodes,
    formats: Formats,
    stats: Mapping[str, ValueStats],
    chosen: Mapping[str, QuantParams],
    method: str,
) -> dict[str, float]:
    """Return value -> the scale below which a product that it stores would need more than a shift.

    The steps of few bits are coarse; a finer trunk would hold nothing but their multiples anyway.
    """
    fused = swallowed(nodes, formats.integer)
    found: dict[str, float] = {}
    for site, weight_bits in formats.weight_bits.items():
        node = nodes.by_name[site]
        source, out = formats.source(nodes, node.inputs[0]), final(site, fused)
        if source is None or (weight_bits, formats.values[source].bits) == (8, 8):
            continue
        bits = formats.values[source].bits
        # Of a trunk's uint8 copy, the exponent is still open.
        step = (
            chosen[source].scale if source in chosen else 2 * stats[source].quantizer(bits, False, method)[0]
        )
        largest = float(np.abs(node.call.args[1].value.numpy()).max(initial=0.0))
        found[out] = max(found.get(out, 0.0), step * largest / largest_reached(weight_bits))
    return found


def _region(
    members: list[str],
    formats: Mapping[str, ValueFormat],
    stats: Mapping[str, ValueStats],
    method: str,
) -> dict[str, QuantParams]:
    """Return one 8-bit storage for all values of a region; the widest range decides."""
    dtype, bits = _dtype(members, formats), formats[members[0]].bits
    symmetric = dtype == "int8"
    ranges = [observer_for(method, stats[name].histogram).range(bits, symmetric) for name in members]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if any(formats[name].unary in FLOORED for name in members):
        low = max(low, GELU_FLOOR)
    step, zero = affine_parameters(np.array([low, high]), bits, symmetric)
    params = QuantParams(_float32(float(step)), int(zero), dtype, code_limits(dtype, bits))
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
        chosen[k] = replace(chosen[k], scale=scale_k)
        chosen[q] = replace(chosen[q], scale=scale_q)


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


def _as_uint8(stats: ValueStats, trunk: QuantParams, method: str, bits: int) -> QuantParams:
    """Return the uint8 storage of an int16 value that a shift reaches: the better of two exponents."""
    wanted, _ = stats.quantizer(bits, False, method)
    low, most = min(stats.histogram.minimum, 0.0), 2**bits - 1
    exponents = [max(0, math.floor(math.log2(wanted / trunk.scale)) + step) for step in (0, 1)]
    scales = np.array([trunk.scale * 2.0**e for e in exponents])
    zeros = np.clip(np.floor(-max(low, -most * wanted) / scales + 0.5), 0, most)
    errors = expected_error(stats.histogram, scales, zeros, bits, False)
    best = int(errors.argmin())
    return QuantParams(float(scales[best]), int(zeros[best]), "uint8", (0, most))
