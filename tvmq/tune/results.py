"""What tuning found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tvmq.record import Record

Decisions = Mapping[str, Any]


class TuningInterrupted(KeyboardInterrupt):
    """Ctrl-C during tuning; the message says where the measurements are."""


@dataclass(frozen=True, slots=True)
class TunedKernel(Record):
    """What tuning found for one kernel of a model; times are one call's, in microseconds."""

    name: str
    kernel: str  # Kernel.semantics
    calls: int
    default_us: float | None  # None: nothing was measured
    us: float | None
    trials: int
    decisions: Mapping[str, Any] | None  # None: the default ones


def decisions_of(results: Sequence[TunedKernel]) -> Mapping[str, Decisions]:
    """Return what DispatchKernels takes."""
    return MappingProxyType({r.kernel: r.decisions for r in results if r.decisions is not None})


def written(decisions: Decisions) -> str:
    """Return decisions for people: "row_tile 6, outer rows"."""
    return ", ".join(f"{name} {value}" for name, value in decisions.items())
