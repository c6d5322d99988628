"""Analyse a model: quantize it as compile does, then measure every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.analysis.advice import Evidence, advice
from tvmq.analysis.measure import (
    ALONE_SAMPLES,
    COPY,
    Measurement,
    Part,
    channels_before,
    code_range,
    parts_of,
)
from tvmq.analysis.records import Analysis, OutputError, SiteError, Spread
from tvmq.calibrate.batches import Batch, as_batches, input_specs, samples_in
from tvmq.calibrate.histogram import Histogram
from tvmq.environment import require_tvm
from tvmq.errors import CalibrationError, UsageError
from tvmq.formats import QuantParams
from tvmq.plan.nodes import Nodes
from tvmq.progress import Progress, silent
from tvmq.quantize.presets import DEFAULT
from tvmq.quantizer import NO_CALIBRATION, Quantized, check_quantization, quantized, told_bits

SAMPLES = 16
BINS = 60  # of the histograms that are kept
COMMON = 0.999  # the share of values that outliers are compared with


def analyze(
    model: Any,
    *,
    calibration: Any = None,
    held_out: Any = None,
    example_inputs: Any = None,
    bits: int | str | Mapping[str, Any] = 8,
    ignored: str | Sequence[str] = (),
    requantize: str = "pot",
    observer: str = "mse",
    preset: str = DEFAULT,
    seed: int = 0,
    progress: Progress = silent,
) -> Analysis:
    """Return how far each site is from float once quantized, and what would help.

    held_out: other typical inputs, to measure on; none: some of the calibration samples. All other arguments
    are those of tvmq.compile, and quantize alike; values are compared at level qdq, where the numbers are
    those of the artifact and softmax, GELU and layer norms are still computed in float.

    Raises UsageError, CalibrationError or UnsupportedModelError (tvmq.errors).
    """
    require_tvm()
    precision = check_quantization(bits, requantize, observer, preset)
    if calibration is None:
        raise CalibrationError(NO_CALIBRATION)
    options = {"bits": told_bits(precision), "requantize": requantize, "observer": observer, "preset": preset}
    options["seed"] = seed
    chosen = quantized(
        model,
        example_inputs,
        calibration,
        bits=precision,
        ignored=ignored,
        requantize=requantize,
        observer=observer,
        preset=preset,
        seed=seed,
        progress=progress,
    )
    other = None if held_out is None else list(as_batches(held_out, input_specs(chosen.unbalanced)))
    batches = _some(chosen.batches if other is None else other)
    measurement, sites = _measured(chosen, batches, progress)
    return Analysis(
        model=_named(model),
        samples=sum(map(samples_in, batches)),
        held_out=held_out is not None,
        calibration_samples=chosen.seen.samples,
        options={**options, "ignored": [ignored] if isinstance(ignored, str) else list(ignored)},
        outputs=tuple(
            OutputError(f"output_{index}" if len(measurement.outputs) > 1 else "output", sums.closeness())
            for index, sums in enumerate(measurement.outputs)
        ),
        sites=sites,
        findings=chosen.findings,
    )


def _measured(
    chosen: Quantized, batches: Sequence[Batch], progress: Progress
) -> tuple[Measurement, tuple[SiteError, ...]]:
    """Return what was measured on batches, and the errors of all sites."""
    parts = parts_of(chosen.nodes, chosen.plan, chosen.formats.integer, chosen.numbers)
    if not parts:
        raise UsageError("model: has nothing that is computed in floats; there is nothing to analyse")
    measurement = Measurement(chosen.mod, chosen.nodes, parts, chosen.formats, chosen.numbers)
    progress("analyze", 0, len(batches) + 1)
    for done, batch in enumerate(batches, start=1):
        measurement.add(batch, alone=done <= ALONE_SAMPLES)
        progress("analyze", done, len(batches) + 1)
    unbalanced = channels_before(chosen.unbalanced, parts, batches[:ALONE_SAMPLES])
    described = _Describer(chosen, measurement, unbalanced)
    progress("analyze", len(batches) + 1, len(batches) + 1)
    return measurement, tuple(described.site(part) for part in parts)


class _Describer:
    """Turns sums into what is told of a site."""

    def __init__(self, chosen: Quantized, measurement: Measurement, unbalanced: Mapping[str, Any]) -> None:
        self.chosen, self.measurement, self.unbalanced = chosen, measurement, unbalanced
        self.sites = {part.node.name for part in measurement.parts}

    def site(self, part: Part) -> SiteError:
        """Return the error of one site."""
        name = part.node.name
        sums = self.measurement.sites[name]
        known = {
            "together": sums.together.closeness(),
            "weights_db": sums.weights.closeness().sqnr_db if part.has_weight else None,
            "inputs_db": sums.inputs.closeness().sqnr_db if part.has_weight else None,
            "reads": self._spread(part.reads, copy=name in self.chosen.numbers.uint8_readers),
            "gives": self._spread(part.output, copy=False),
            "channels_before": _rounded(self.unbalanced.get(name, ())),
            "channels_after": _rounded(() if sums.channels is None else sums.channels),
        }
        alone = sums.alone.closeness() if part.integer else None
        said = ""
        if alone is not None:
            upstream = _upstream(self.chosen.nodes, part, self.sites)
            said = advice(Evidence(alone=alone, upstream=upstream, **known))  # type: ignore[arg-type]
        return SiteError(
            site=name,
            kind=part.kind,
            integer=part.integer,
            alone=alone,
            advice=said,
            **known,  # type: ignore[arg-type]
        )

    def _spread(self, name: str, *, copy: bool) -> Spread | None:
        """Return how a stored value lies in its range; copy: in that of its uint8 copy, if it has one."""
        numbers = self.chosen.numbers
        if name not in numbers.values or name not in self.chosen.seen.values:
            return None
        second = numbers.also_uint8.get(name) if copy else None
        clipping = self.measurement.clipping[name + COPY if second else name]
        histogram = self.chosen.seen.values[name].histogram
        move = self.chosen.stable.moves.get(name)
        return _spread(name, second or numbers.values[name], histogram, clipping.shares, move)


def _spread(
    name: str, params: QuantParams, histogram: Histogram, shares: tuple[float, float], move: float | None
) -> Spread | None:
    if not histogram.count:
        return None
    low, high = code_range(params)
    edges, counts = _coarse(histogram)
    common = max(abs(histogram.quantile(q)) for q in ((1 - COMMON) / 2, (1 + COMMON) / 2))
    largest = max(abs(histogram.minimum), abs(histogram.maximum))
    return Spread(
        tensor=name,
        dtype=params.dtype,
        low=low,
        high=high,
        minimum=histogram.minimum,
        maximum=histogram.maximum,
        edges=edges,
        counts=counts,
        outliers=largest / common if common > 0 else 1.0,
        clipped=shares[0],
        clipping=shares[1],
        move=move,
    )


def _coarse(histogram: Histogram) -> tuple[tuple[float, float], tuple[int, ...]]:
    """Return the outer edges and the counts of at most BINS bins of one width."""
    edges, counts = histogram.occupied()
    joined = -(-len(counts) // BINS)
    padded = np.zeros(-(-len(counts) // joined) * joined, np.int64)
    padded[: len(counts)] = counts
    coarse = padded.reshape(-1, joined).sum(1)
    last = float(edges[0]) + (float(edges[1]) - float(edges[0])) * len(padded)
    return (float(edges[0]), last), tuple(coarse.tolist())


def _upstream(nodes: Nodes, part: Part, sites: set[str]) -> str:
    """Return the site whose output a site reads first, "" if it is an input of the model."""
    name = part.node.inputs[0] if part.node.inputs else ""
    while name and name not in sites:
        node = nodes.by_name.get(name)
        name = node.inputs[-1] if node is not None and node.inputs else ""
    return name


def _some(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Return batches of about SAMPLES samples in all, at even distances."""
    size = samples_in(batches[0])
    wanted = max(SAMPLES // size, 1)
    if len(batches) <= wanted:
        return batches
    return [batches[i * len(batches) // wanted] for i in range(wanted)]


def _rounded(channels: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in channels)


def _named(model: Any) -> str:
    return Path(model).name if isinstance(model, str | Path) else type(model).__name__
