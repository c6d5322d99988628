"""Give every site of a canonical module a precision, or a reason to stay in float."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import tvm

from tvmq import numerics
from tvmq.errors import UnsupportedModelError
from tvmq.passes.composites import attributes
from tvmq.passes.patches import supports_transposed
from tvmq.passes.pool_windows import window_of
from tvmq.passes.rebuild import bindings, op_name
from tvmq.plan.edges import EDGE_REASONS, NARROWED, edge_sites
from tvmq.plan.formats import Formats
from tvmq.plan.nodes import MULTIPLYING, OUTPUT, SITE_KINDS, TABLE, Node, Nodes
from tvmq.sites import MOVES, match_sites, sites
from tvmq.spec import W8A8, Coverage, CoverageRow, Plan, Precision, SitePlan
from tvmq.unary import UNARY_FUNCTIONS, grows_no_faster

TABLES = {*UNARY_FUNCTIONS, TABLE}
# Every other planned site quantizes its own input.
FLOAT_INPUT = "its input is float already, where {} gains nothing"
POOL_REASON = (
    "pooling has an integer kernel for windows of one size, none cut short at the border, and means for all "
    "pixels or tokens of a channel"
)
COARSE = "8 bits would be too coarse for its result, which no product reads in 8 bits anyway"
INTEGER = "integer kernel"
CHOSEN_FLOAT = "its bits are given as float"
Bits = Precision | Mapping[str, Precision | None]  # of all sites, or by glob pattern; None: float
NO_REASONS: Mapping[str, str] = MappingProxyType({})
# Why lowering left a planned site in float: other uses of its values decided how they are stored.
STORAGE = {
    "attention": "it needs queries, keys and values stored as int8 with scales chosen for it alone, which "
    "constants and values with other uses are not",
    "unary": "another use of its input or result stores that as int16, and tables map uint8 to uint8",
    "": "its input is not stored as its integer kernel needs it",
}


def assign_precisions(
    nodes: Nodes,
    module_hash: str,
    *,
    ignored: Sequence[str] = (),
    bits: Bits = W8A8,
    reasons: Mapping[str, str] = NO_REASONS,
) -> Plan:
    """Return the plan: bits for every site that has an integer form and matches no ignored pattern.

    bits: of all sites, or by glob pattern; of several that match the last counts, None is float, and what no
    pattern names has 8. Fewer than 8 are for products and attention alone, and not for the first and the last
    of them. reasons: by site, why what was chosen for it was.

    Raises UsageError for a pattern that matches no site.
    """
    names = [name for name, node in nodes.by_name.items() if node.kind in SITE_KINDS]
    left_out = match_sites(tuple(ignored), names) if ignored else frozenset()
    others = _without_integer_form(nodes)
    wanted = by_site(bits, [*names, *(name for name, _, _ in others)])
    edges = edge_sites(nodes) if any(own not in (W8A8, None) for own in wanted.values()) else {}
    plans = []
    for name in names:
        node, own = nodes.by_name[name], wanted[name]
        kind = kind_of(node)
        impossible = "matches `ignored`" if name in left_out else float_reason(node) or _coarse(nodes, node)
        if impossible or own is None:
            plans.append(SitePlan(name, kind, None, impossible or reasons.get(name, CHOSEN_FLOAT)))
            continue
        own = own if node.kind in NARROWED and name not in edges else W8A8
        said = INTEGER + EDGE_REASONS.get(edges.get(name, ""), "")
        plans.append(SitePlan(name, kind, own, reasons.get(name, said)))
    plans += [SitePlan(name, op, None, why) for name, op, why in others]
    return Plan(module_hash, tuple(plans))


def by_site(bits: Bits, names: Sequence[str]) -> dict[str, Precision | None]:
    """Return what each site is to have; bits as for assign_precisions."""
    if isinstance(bits, Precision):
        return dict.fromkeys(names, bits)
    wanted: dict[str, Precision | None] = dict.fromkeys(names, W8A8)
    for pattern, own in bits.items():
        # Names are names, whatever they hold that a pattern would mean something by.
        hits = (pattern,) if pattern in wanted else match_sites((pattern,), names)
        wanted |= dict.fromkeys(hits, own)
    return wanted


def as_stored(plan: Plan, nodes: Nodes, formats: Formats) -> Plan:
    """Return the plan with the bits that the activations of each site really have.

    Several sites that read one value read the most bits that one of them asks for.
    """
    sites = []
    for site in plan.sites:
        node = nodes.by_name.get(site.site)
        if site.precision is not None and node is not None and node.kind in NARROWED:
            bits = max((formats.bits_read(nodes, name) for name in node.inputs), default=8)
            if bits > site.precision.activation_bits:
                own = replace(site.precision, activation_bits=bits)
                said = f"{site.reason}; another reader of its input takes {bits} bits"
                site = replace(site, precision=own, reason=said)
        sites.append(site)
    return Plan(plan.module_hash, tuple(sites))


def kind_of(node: Node) -> str:
    """Return the site kind that users see."""
    return node.op if node.kind in ("unary", "depthwise", "max_pool", "mean_pool") else node.kind


def float_reason(node: Node) -> str:
    """Return why a site has no integer form, "" if it has one."""
    if node.kind in ("conv2d", "depthwise"):
        attrs = node.call.attrs
        if str(attrs.data_layout) != "NCHW":
            return f"layout {attrs.data_layout} has no integer kernel yet"
    if node.kind == "conv2d_transpose":
        shape = tuple(int(d) for d in node.call.args[1].ty.shape)
        if not supports_transposed(shape, node.call.attrs):
            return "only transposed convolutions with kernel = stride + 2 * padding have an integer kernel"
    if node.kind in ("max_pool", "mean_pool") and window_of(node.call) is None:
        return POOL_REASON
    if node.kind == "attention" and node.call.attrs.causal_mask is not None:
        return "causal attention has no integer kernel yet"
    return _layer_norm_reason(node) if node.kind == "layer_norm" else ""


def _coarse(nodes: Nodes, node: Node) -> str:
    """Return why the result of a chain needs more than 8 bits, "" if it does not."""
    plain = node.chain is None or grows_no_faster(node.chain)
    return "" if plain or _feeds_product(nodes, node.name) else COARSE


def _feeds_product(nodes: Nodes, name: str) -> bool:
    users = [nodes.by_name[user] for user in nodes.consumers.get(name, ()) if user != OUTPUT]
    return any(
        user.kind in MULTIPLYING or (user.kind == "view" and _feeds_product(nodes, user.name))
        for user in users
    )


def _layer_norm_reason(node: Node) -> str:
    _, *affine = node.call.args
    if [int(axis) % len(node.shape) for axis in node.call.attrs.axes] != [len(node.shape) - 1]:
        return "layer norm over other axes than the last has no integer kernel yet"
    if not all(isinstance(vector, tvm.ir.GenericConst) for vector in affine):
        return "layer norm with computed gamma or beta has no integer kernel yet"
    if node.shape[-1] > numerics.LAYER_NORM_MAX_CHANNELS:
        return (
            f"layer norm over {node.shape[-1]} channels, of which {numerics.LAYER_NORM_MAX_CHANNELS} fit "
            "64-bit sums"
        )
    return ""


REASONS = {
    "attention_bias": "attention has an integer kernel for constant biases and for masks of 0 and -inf "
    "alone, made of booleans or integers",
    "softmax": "softmax outside of attention has no integer kernel yet",
    "matmul": "outside of attention only products with a constant matrix have an integer kernel yet",
    "conv2d": "convolutions with computed weights have no integer kernel yet",
    "conv2d_transpose": "convolutions with computed weights have no integer kernel yet",
    "resize2d": "interpolation has no integer kernel yet",
    "batch_norm": "batch norm that no product precedes stays float",
    "add": "only values of one shape, or a value and a constant, are added in integers",
}


def _without_integer_form(nodes: Nodes) -> list[tuple[str, str, str]]:
    """Return (name, op, reason) of whatever else computes floats from floats."""
    return [
        (name, node.op, REASONS.get(node.op, f"{node.op} has no integer kernel yet"))
        for name, node in nodes.by_name.items()
        if node.kind == "other" and node.is_float and node.inputs and node.op and node.op not in MOVES
    ]


def coverage_of(mod: tvm.IRModule, plan: Plan, integer: frozenset[str], *, strict: bool = False) -> Coverage:
    """Return what a plan makes of each site; strict refuses one that leaves any in float.

    `achieved` tells what lowering made of it.
    """
    macs = {site.id: site.macs for site in sites(mod)}
    rows = []
    for site in plan.sites:
        done = site.precision is not None and site.site in integer
        what = "a table of 256 values" if site.kind in TABLES else "a pooling of integers"
        reason = site.reason if done or site.precision is None else FLOAT_INPUT.format(what)
        rows.append(CoverageRow(site.site, site.kind, done, reason, macs.get(site.site, 0)))
    return _accepted(Coverage(tuple(rows)), strict)


def achieved(coverage: Coverage, integer: tvm.IRModule, *, strict: bool = False) -> Coverage:
    """Return coverage with the sites that the integer module computes in float; strict refuses any.

    A product, an attention or a norm is integer if a composite computes it; a unary function may have been
    swallowed by one, and an embedding is a take of integers, so these are float only if their float operator
    still stands under its name.
    """
    sites_done = {attributes(func).get("site", "") for func in integer.functions.values()}
    # A transposed convolution is one product per phase.
    composites = sites_done | {re.sub(r"\.phase\d+$", "", name) for name in sites_done}
    standing = {str(b.var.name) for b in bindings(integer["main"]) if op_name(b.value) and _is_float(b.var)}
    rows = []
    for row in coverage.rows:
        plain = row.kind in TABLES or row.kind == "embedding"
        done = row.site not in standing if plain else row.site in composites
        reason = STORAGE["unary"] if plain else STORAGE.get(row.kind, STORAGE[""])
        rows.append(replace(row, integer=False, reason=reason) if row.integer and not done else row)
    return _accepted(Coverage(tuple(rows)), strict)


def require_share(coverage: Coverage, least: float | None) -> None:
    """Raise UnsupportedModelError if a smaller share of the multiplications than this is done in integers."""
    share = coverage.macs_integer_fraction
    if least is None or share >= least:
        return
    left = sorted((row for row in coverage.rows if not row.integer), key=lambda row: -row.macs)
    listed = ", ".join(f"{row.site} ({row.reason})" for row in left[:5])
    raise UnsupportedModelError(
        f"min_coverage={least:g}: {share:.4g} of the multiplications would be done in integers, the rest by "
        f"{listed}; ask for less to accept that"
    )


def _is_float(var: tvm.relax.Var) -> bool:
    return isinstance(var.ty, tvm.relax.TensorType) and str(var.ty.dtype) == "float32"


def _accepted(coverage: Coverage, strict: bool) -> Coverage:
    left = [row for row in coverage.rows if not row.integer]
    if strict and left:
        listed = ", ".join(f"{row.site} ({row.reason})" for row in left[:5])
        raise UnsupportedModelError(
            f"strict: {len(left)} of {len(coverage.rows)} sites would stay in float: {listed}; "
            "compile without strict to accept that"
        )
    return coverage
