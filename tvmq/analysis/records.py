"""What an analysis found: frozen, JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvmq.calibrate.findings import Finding
from tvmq.plan.records import PlanReport
from tvmq.record import Record

LISTED = 10  # sites that str() shows


@dataclass(frozen=True, slots=True)
class Closeness(Record):
    """How near quantized values are to float ones, over all samples together."""

    sqnr_db: float  # 10 log10 of the sum of squares over that of the differences, at most records.BEST_DB
    cosine: float


BEST_DB = 150.0  # float32 against itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread(Record):
    """How the values of one stored tensor lie in the range that its codes hold."""

    tensor: str
    dtype: str
    low: float  # the codes hold low to high
    high: float
    minimum: float  # seen while calibrating
    maximum: float
    edges: tuple[float, float]  # of the first and the last bin of counts
    counts: tuple[int, ...]
    outliers: float  # the largest size over that which 99.9 % of the values stay below
    clipped: float  # share of the analysed values outside of low to high
    clipping: float  # share of the squared error that these make
    move: float | None  # by what share the scale would move with other samples; None: not looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteError(Record):
    """The error of one site's output: its bias and a ReLU belong to it, a residual added to it does not."""

    site: str
    kind: str
    integer: bool
    together: Closeness  # everything before it is quantized too
    alone: Closeness | None  # only this site is: its inputs, weights and output; None: it stays in float
    weights_db: float | None  # SQNR with its weights alone quantized; None for a site without
    inputs_db: float | None  # and with what it reads alone quantized
    reads: Spread | None
    gives: Spread | None
    channels_before: tuple[float, ...]  # largest size of each channel that it reads, in the model as imported
    channels_after: tuple[float, ...]  # and once channels are balanced
    advice: str

    @property
    def rank(self) -> tuple[bool, float]:
        """Return what to sort by, the worst first and what stays in float last."""
        return (self.alone is None, (self.alone or self.together).sqnr_db)


@dataclass(frozen=True, slots=True)
class OutputError(Record):
    """The error of one output of the model."""

    name: str
    closeness: Closeness


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis(Record):
    """Every site's error; str() is a summary, save_html writes the page with plots."""

    model: str
    samples: int
    held_out: bool  # whether the samples are others than those of calibration
    calibration_samples: int
    options: Mapping[str, Any]  # bits, requantize, ...: those of tvmq.analyze
    outputs: tuple[OutputError, ...]
    sites: tuple[SiteError, ...]  # in graph order
    findings: tuple[Finding, ...]  # what looks wrong with the calibration data

    @property
    def worst_first(self) -> tuple[SiteError, ...]:
        """Return the sites by what they do alone, the worst first."""
        return tuple(sorted(self.sites, key=lambda site: site.rank))

    def save_html(self, path: Any, plan: PlanReport | None = None) -> None:
        """Write one page that needs nothing else: no script, and nothing from the network.

        plan: what bits="auto" chose from (`compiled.search`), drawn at the end.
        """
        from tvmq.analysis.page import save

        save(self, path, plan)

    def __str__(self) -> str:
        lines = [
            f"output {o.name}: SQNR {o.closeness.sqnr_db:.1f} dB, cosine {o.closeness.cosine:.5f}"
            for o in self.outputs
        ]
        for site in self.worst_first[:LISTED]:
            alone = f"{site.alone.sqnr_db:.1f} dB alone, " if site.alone else ""
            lines.append(
                f"  {site.site} ({site.kind}): {alone}{site.together.sqnr_db:.1f} dB with all before it"
            )
            lines += [f"    {site.advice}"] * bool(site.advice)
        return "\n".join(lines)
