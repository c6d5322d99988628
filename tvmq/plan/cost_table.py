"""What every site costs in every precision: milliseconds and bytes, and where each number comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tvmq.plan.values import Value, conversions_ms
from tvmq.record import Record
from tvmq.spec import Precision

FLOAT = "float"  # what the precision of a site that stays in float is called
MEASURED, PREDICTED, ROOFLINE = SOURCES = ("measured", "predicted", "roofline")


def precision_name(precision: Precision | None) -> str:
    """Return what a precision is called in tables and files: "w4a8", "float"."""
    return FLOAT if precision is None else str(precision)


def precision_of(name: str) -> Precision | None:
    """Return what precision_name was made of; UsageError for what names none."""
    return None if name == FLOAT else Precision.of(name)


@dataclass(frozen=True, slots=True)
class SiteCost(Record):
    """One site in one precision, its epilogue included, dtype changes of its inputs and outputs left out."""

    site: str
    precision: str  # precision_name
    ms: float  # median of one call on `threads` threads
    spread: float  # (p90 - p10) / median of the repeats; 0 where nothing was measured
    weight_bytes: int  # of its constants, in the artifact and in memory
    source: str  # of SOURCES


@dataclass(frozen=True)
class CostTable(Record):
    """The costs of one model on one machine."""

    module_hash: str  # of the canonical module
    target: str  # the profile's name
    device: str  # fingerprint of the machine that measured; "" where nothing was measured
    threads: int
    sites: tuple[SiteCost, ...]
    values: tuple[Value, ...] = ()  # in graph order, with what converting them costs
    fixed_ms: float = 0.0  # of what no choice changes: views, tables, adds, calls
    fixed_bytes: int = 0  # of the artifact: code, graph, constants of no site
    activation_bytes: Mapping[str, int] = field(default_factory=dict)  # peak, by uniform precision's name

    @cached_property
    def of(self) -> Mapping[tuple[str, str], SiteCost]:
        """Return the costs by (site, precision's name)."""
        return {(cost.site, cost.precision): cost for cost in self.sites}

    def ms(self, chosen: Mapping[str, str]) -> float:
        """Return the latency of a plan, site -> precision's name for all sites; KeyError if not offered."""
        integer = {site: name != FLOAT for site, name in chosen.items()}
        total = self.fixed_ms + sum(self.of[site, name].ms for site, name in chosen.items())
        return total + conversions_ms(self.values, integer)
