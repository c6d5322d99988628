"""Costs of a model's sites by rule, for tests that measure nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import FLOAT, CostTable, SiteCost, precision_name
from tvmq.plan.nodes import MULTIPLYING
from tvmq.prepared import Prepared
from tvmq.spec import W8A8, Precision


def costs(model: Prepared, precisions: Sequence[Precision]) -> CostTable:
    """Return products by their weights' size, fewer bits a little faster; norms are faster in float."""
    rows: list[SiteCost] = []
    sites = [site.site for site in assign_precisions(model.nodes, model.hash).sites if site.precision]
    for name in sites:
        node = model.nodes.by_name[name]
        if node.kind in MULTIPLYING:
            size = prod(int(d) for d in node.call.args[1].ty.shape)
            for p in (W8A8, *precisions):
                ms = size * (0.5e-4 + 0.5e-5 * p.weight_bits)
                rows.append(SiteCost(name, precision_name(p), ms, 0, size * p.weight_bits // 8, "measured"))
            rows.append(SiteCost(name, FLOAT, size * 3e-4, 0, 4 * size, "measured"))
        else:
            slow = 0.2 if node.kind == "layer_norm" else 0.05
            rows.append(SiteCost(name, precision_name(W8A8), slow, 0, 64, "roofline"))
            rows.append(SiteCost(name, FLOAT, 0.1, 0, 256, "roofline"))
    values = tuple(
        replace(v, from_float=0.001, readings=tuple(replace(r, to_float=0.001) for r in v.readings))
        for v in model.values
    )
    return CostTable(model.hash, "x86_baseline", "", 1, tuple(rows), values, 0.1, 1000)
