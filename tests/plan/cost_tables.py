"""Problems with hand-made costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmq.plan.cost_table import CostTable, SiteCost
from tvmq.plan.groups import SiteGroup
from tvmq.plan.problem import Moment, Problem
from tvmq.plan.values import Reading, Value

Row = tuple[float, float, int]  # loss, ms, bytes


def problem(
    rows: Mapping[str, Mapping[str, Row]],
    edges: Sequence[tuple[str, str, float, float]] = (),
    values: Sequence[Value] = (),
    *,
    moments: Sequence[Moment] = (),
    fixed_ms: float = 0.0,
    fixed_bytes: int = 0,
) -> Problem:
    """Return a problem of groups with one site each, by the same name; rows by precision.

    edges: writer, its only reader, ms to integers and to float of what passes between them.
    """
    sites = tuple(
        SiteCost(name, precision, ms, 0.0, size, "measured")
        for name, choices in rows.items()
        for precision, (_, ms, size) in choices.items()
    )
    joined = [
        Value(f"{at} {writer}", (writer,), (Reading((reader,), to_float=down),), from_float=up)
        for at, (writer, reader, up, down) in enumerate(edges)
    ]
    table = CostTable("17", "cpu", "", 1, sites, (*joined, *values), fixed_ms, fixed_bytes)
    groups = tuple(SiteGroup(name, (name,), tuple(choices)) for name, choices in rows.items())
    losses = {(name, p): row[0] for name, choices in rows.items() for p, row in choices.items()}
    return Problem(groups, losses, table, moments)
