"""Problems with hand-made costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmq.plan.cost_table import CostTable, EdgeCost, SiteCost
from tvmq.plan.groups import SiteGroup
from tvmq.plan.program import Moment, Problem

Row = tuple[float, float, int]  # loss, ms, bytes


def problem(
    rows: Mapping[str, Mapping[str, Row]],
    edges: Sequence[tuple[str, str, float, float]] = (),
    *,
    moments: Sequence[Moment] = (),
    fixed_ms: float = 0.0,
    fixed_bytes: int = 0,
) -> Problem:
    """Return a problem of groups with one site each, by the same name; rows by precision."""
    sites = tuple(
        SiteCost(name, precision, ms, 0.0, size, "measured")
        for name, choices in rows.items()
        for precision, (_, ms, size) in choices.items()
    )
    table = CostTable(
        "17", "cpu", "", 1, sites, tuple(EdgeCost(*edge) for edge in edges), fixed_ms, fixed_bytes
    )
    groups = tuple(SiteGroup(name, (name,), tuple(choices)) for name, choices in rows.items())
    losses = {(name, p): row[0] for name, choices in rows.items() for p, row in choices.items()}
    return Problem(groups, losses, table, moments)
