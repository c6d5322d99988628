"""Move scale between the channels of a linear's input and the rows of its weight, by powers of two.

    Before:  x = layer_norm(h, gamma, beta)            y = matmul(x, W)        (every consumer of x)
    After:   x = layer_norm(h, gamma / m, beta / m)    y = matmul(x, m[:, None] * W)

    Before:  v = add(matmul(x, V), b)            y = matmul(attention(q, k, v), W)
    After:   v = add(matmul(x, V / m), b / m)    y = matmul(attention(q, k, v), m[:, None] * W)

Attention takes convex combinations of the rows of v, so each of its channels passes through on its own. Every
m is a power of two: the float function stays the same bit for bit, barring overflow and underflow, and the
channels of the activation, which share one scale once quantized, come to have like ranges. Which m is decided
in calibrate/balancing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.passes.linear_graph import LinearGraph, is_constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, rebuild, shape_of

Float32 = npt.NDArray[np.float32]
Exponents = npt.NDArray[np.int32]
Factors = Mapping[str, tuple[int, ...]]  # by site: the exponent of m for each channel

ATTENTIONS = ("nn.attention", "nn.attention_bias")


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that can be balanced together: who makes them and which linears take them."""

    site: str  # the layer_norm, or the matmul that makes v
    value: str  # the value that the consumers take, [..., C]
    bias: str | None  # the addition of v's bias; None for a layer_norm
    consumers: tuple[str, ...]
    weights: tuple[Float32, ...] = field(repr=False)  # the consumers', [C, N] each


@tvm.transform.module_pass(opt_level=0, name="Balance")
class Balance:
    """Apply decided exponents; the canonical form stays canonical, with the same sites."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with its constants rescaled."""
        groups = {group.site: group for group in find_groups(mod)}
        unknown = sorted(set(self.factors) - set(groups))
        if unknown:
            raise ValueError(f"balance: {unknown[0]!r} is no group of this module; it has {sorted(groups)}")
        edits = _Edits()
        for site, exponents in self.factors.items():
            edits.add_group(groups[site], np.array(exponents, np.int32))
        return rebuild(mod, edits.rule)


def find_groups(mod: tvm.IRModule) -> tuple[Group, ...]:
    """Return the groups of main that can be balanced exactly, in graph order."""
    graph = LinearGraph(mod["main"])
    found = [_after_layer_norm(graph, var) for var in graph.values if graph.op(var) == "nn.layer_norm"]
    found += [_through_attention(graph, var) for var in graph.values if graph.op(var) in ATTENTIONS]
    return tuple(group for group in found if group is not None)


def _after_layer_norm(graph: LinearGraph, var: Var) -> Group | None:
    """Return the group of a layer_norm over the last axis whose every reader is a linear."""
    call = graph.values[var]
    if not all(is_constant(arg) and len(arg.ty.shape) == 1 for arg in call.args[1:3]):
        return None
    linears = graph.linears(var)
    return None if linears is None else _group(var.name, var.name, None, linears, graph)


def _through_attention(graph: LinearGraph, var: Var) -> Group | None:
    """Return the group of an attention between the linear that makes v and the linears that read it."""
    call = graph.values[var]
    merged = graph.only_reader(var)
    if merged is None or graph.op(merged) != "reshape":
        return None
    if not _splits_heads(call, graph.values[merged]):
        return None
    linears = graph.linears(merged)
    source = graph.linear_before(call.args[2])
    if linears is None or source is None:
        return None
    matmul, bias = source
    return _group(matmul.name, merged.name, None if bias is None else bias.name, linears, graph)


class _Edits:
    """Powers of two by which a binding's constants are to be multiplied: exponents that broadcast to them."""

    def __init__(self) -> None:
        self.exponents: dict[str, list[Exponents]] = {}

    def add_group(self, group: Group, exponents: Exponents) -> None:
        """Note the edits of one group; exponents [C] are those of m."""
        channels = len(group.weights[0])
        if len(exponents) != channels:
            raise ValueError(f"balance: {group.site!r} has {channels} channels, not {len(exponents)}")
        # What makes the channels, [C] or [K, C], is divided by m; the rows [C, N] that take them, multiplied.
        for name in (group.site, group.bias):
            if name is not None:
                self.exponents.setdefault(name, []).append(-exponents)
        for name in group.consumers:
            self.exponents.setdefault(name, []).append(exponents[:, None])

    def rule(self, _rebuild: Rebuild, var: Var, value: Expr) -> Expr | None:
        """Return the call with its constant operands rescaled, None where nothing is noted for it."""
        edits = self.exponents.get(var.name)
        if edits is None:
            return None
        args = [_scaled(arg, edits) if is_constant(arg) else arg for arg in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args)


def _group(site: str, value: str, bias: str | None, linears: list[Var], graph: LinearGraph) -> Group:
    weights = tuple(graph.values[var].args[1].value.numpy() for var in linears)
    return Group(site, value, bias, tuple(var.name for var in linears), weights)


def _scaled(constant: Expr, edits: list[Exponents]) -> Expr:
    array = constant.value.numpy()
    for exponents in edits:
        array = np.ldexp(array, exponents)
    return relax.const(array.astype(np.float32))


def _splits_heads(attention: Expr, merged: Expr) -> bool:
    """Tell whether merged joins [B, T, H, D] to [..., H * D] and v has as many heads as the result."""
    out, v, joined = shape_of(attention), shape_of(attention.args[2]), shape_of(merged)
    return (
        out is not None and v is not None and joined is not None
        and out[2:] == v[2:] and joined[-1] == out[2] * out[3]
    )  # fmt: skip
