"""Give every site of a canonical module a precision, or a reason to stay in float."""

from __future__ import annotations

from collections.abc import Sequence

import tvm

from tvmq.errors import UnsupportedModelError
from tvmq.passes.patches import supports_transposed
from tvmq.plan.nodes import SITE_KINDS, Node, Nodes
from tvmq.sites import MOVES, match_sites, sites
from tvmq.spec import Coverage, CoverageRow, Plan, Precision, SitePlan

W8A8 = Precision(8, 8)
# Only unary functions: every other planned site quantizes its own input.
FLOAT_INPUT = "its input is float already, where a table of 256 values gains nothing"


def assign_precisions(nodes: Nodes, module_hash: str, *, ignored: Sequence[str] = ()) -> Plan:
    """Return the plan: bits for every site that has an integer form and matches no ignored pattern.

    Raises UsageError for a pattern that matches no site.
    """
    names = [name for name, node in nodes.by_name.items() if node.kind in SITE_KINDS]
    left_out = match_sites(tuple(ignored), names) if ignored else frozenset()
    plans = []
    for name in names:
        node = nodes.by_name[name]
        reason = "matches `ignored`" if name in left_out else float_reason(node)
        plans.append(
            SitePlan(name, kind_of(node), None, reason)
            if reason
            else SitePlan(name, kind_of(node), W8A8, "integer kernel")
        )
    plans += [SitePlan(name, op, None, why) for name, op, why in _without_integer_form(nodes)]
    return Plan(module_hash, tuple(plans))


def kind_of(node: Node) -> str:
    """Return the site kind that users see."""
    return node.op if node.kind in ("unary", "depthwise") else node.kind


def float_reason(node: Node) -> str:
    """Return why a site has no integer form, "" if it has one."""
    if node.kind in ("conv2d", "depthwise"):
        attrs = node.call.attrs
        if node.kind == "conv2d" and int(attrs.groups) != 1:
            return "grouped convolutions have no integer kernel yet"
        if any(int(d) != 1 for d in attrs.dilation):
            return "dilated convolutions have no integer kernel yet"
        if str(attrs.data_layout) != "NCHW":
            return f"layout {attrs.data_layout} has no integer kernel yet"
    if node.kind == "conv2d_transpose":
        shape = tuple(int(d) for d in node.call.args[1].ty.shape)
        if not supports_transposed(shape, node.call.attrs):
            return "only transposed convolutions with kernel = stride + 2 * padding have an integer kernel"
    if node.kind == "attention" and node.call.attrs.causal_mask is not None:
        return "causal attention has no integer kernel yet"
    return ""


REASONS = {
    "attention_bias": "attention with an additive mask or bias has no integer kernel yet",
    "softmax": "softmax outside of attention has no integer kernel yet",
    "matmul": "outside of attention only products with a constant matrix have an integer kernel yet",
    "conv2d": "convolutions with computed weights have no integer kernel yet",
    "conv2d_transpose": "convolutions with computed weights have no integer kernel yet",
    "resize2d": "interpolation has no integer kernel yet",
    "avg_pool2d": "pooling has no integer kernel yet",
    "adaptive_avg_pool2d": "pooling has no integer kernel yet",
    "max_pool2d": "pooling has no integer kernel yet",
    "mean": "reductions outside of layer norm have no integer kernel yet",
    "batch_norm": "batch norm that no product precedes stays float",
    "add": "only values of one shape, or a value and a tensor constant, are added in integers",
}


def _without_integer_form(nodes: Nodes) -> list[tuple[str, str, str]]:
    """Return (name, op, reason) of whatever else computes floats from floats."""
    return [
        (name, node.op, REASONS.get(node.op, f"{node.op} has no integer kernel yet"))
        for name, node in nodes.by_name.items()
        if node.kind == "other" and node.is_float and node.inputs and node.op and node.op not in MOVES
    ]


def coverage_of(mod: tvm.IRModule, plan: Plan, integer: frozenset[str], *, strict: bool = False) -> Coverage:
    """Return what became of each site; strict refuses a plan that leaves any in float."""
    macs = {site.id: site.macs for site in sites(mod)}
    rows = []
    for site in plan.sites:
        done = site.precision is not None and site.site in integer
        reason = site.reason if done or site.precision is None else FLOAT_INPUT
        rows.append(CoverageRow(site.site, site.kind, done, reason, macs.get(site.site, 0)))
    left = [row for row in rows if not row.integer]
    if strict and left:
        listed = ", ".join(f"{row.site} ({row.reason})" for row in left[:5])
        raise UnsupportedModelError(
            f"strict: {len(left)} of {len(rows)} sites would stay in float: {listed}; "
            "compile without strict to accept that"
        )
    return Coverage(tuple(rows))
