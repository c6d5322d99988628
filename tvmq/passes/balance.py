"""Give the channels of a site's input like ranges, by a factor m and a shift t for each: x' = (x - t) / m.

    Before:  x = layer_norm(h, gamma, beta)              y = add(matmul(x, W), b)     (every consumer of x)
    After:   x = layer_norm(h, gamma/m, (beta - t)/m)    y = add(matmul(x, m * W), b + t W)

    Before:  v = add(matmul(x, V), c)                    y = add(matmul(attention(q, k, v), W), b)
    After:   v = add(matmul(x, V / m), (c - t) / m)      y = add(matmul(attention(q, k, v), m * W), b + t W)

    Before:  x = relu(add(conv2d(h, V), c))              y = conv2d(x, W)
    After:   x = relu(add(conv2d(h, V / m), c / m))      y = conv2d(x, m * W)

m * W multiplies row k of W [K, N] by m[k]. Attention takes convex combinations of the rows of v, so each of
its channels, and a number added to it, passes through on its own. The float function stays the same but for
the rounding of constants; the channels of the activation share one scale once quantized. Which m and t is
decided in calibrate/balancing.py. It is the shift of RepQ-ViT and AOCQ, the factor of SmoothQuant, and
cross-layer equalization, of triples with a depthwise convolution too: with one weight scale per output
channel, a group's factors change nothing in the next one's choice, so that nothing is iterated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.passes.balance_groups import Group, find_groups
from tvmq.passes.constants import array_of
from tvmq.passes.linear_graph import LinearGraph, is_channel_constant
from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Balancing:
    """What becomes of the channels of one group: x' = (x - shifts) / factors."""

    factors: Float32  # [C], > 0
    shifts: Float32  # [C]


@tvm.transform.module_pass(opt_level=0, name="Balance")
class Balance:
    """Apply what was decided, by group; the canonical form stays canonical, with the same sites.

    A linear without a bias gets one where its input is shifted.
    """

    def __init__(self, decided: Mapping[str, Balancing]) -> None:
        self.decided = dict(decided)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with its constants changed."""
        groups = {group.site: group for group in find_groups(mod)}
        edits = _Edits(LinearGraph(mod["main"]))
        for site, balancing in self.decided.items():
            if site not in groups:
                raise ValueError(f"balance: {site!r} is no group of this module; it has {sorted(groups)}")
            edits.add(groups[site], balancing)
        return rebuild(mod, edits.rule)


class _Edits:
    """What is done to each maker and consumer, and the rule that does it."""

    def __init__(self, graph: LinearGraph) -> None:
        self.calls = {var.name: value for var, value in graph.values.items()}
        self.made: dict[str, Balancing] = {}  # by the site that makes the channels
        self.taken: dict[str, Balancing] = {}  # by the site that takes them
        self.sites: dict[str, str] = {}  # by the addition of a bias: its site
        for var, call in graph.values.items():
            made = call.args[0] if graph.op(var) == "add" and is_channel_constant(call) else None
            if made is not None and graph.op(made) == "matmul" and graph.only_reader(made) is not None:
                self.sites[var.name] = made.name

    def add(self, group: Group, balancing: Balancing) -> None:
        """Note what becomes of one group."""
        channels = len(balancing.factors)
        if channels != group.channels:
            raise ValueError(f"balance: {group.site!r} has {group.channels} channels, not {channels}")
        if balancing.shifts.any() and not group.shiftable:
            raise ValueError(f"balance: the channels of {group.site!r} cannot be shifted")
        self.made[group.site] = balancing
        if group.bias is not None:
            self.sites[group.bias] = group.site
        for consumer in group.consumers:
            self.taken[consumer.site] = balancing

    def rule(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        """Return the call with its constants changed, None where nothing is noted for it."""
        name = var.name
        if name in self.sites:
            site = self.sites[name]
            if site not in self.made and site not in self.taken:
                return None
            bias = self._bias(site, value.args[1].value.numpy())
            return relax.Call(value.op, [value.args[0], relax.const(bias)], value.attrs, value.ty_args)
        if name not in self.made and name not in self.taken:
            return None
        if op_name(value) == "nn.layer_norm":
            return _scaled_norm(value, self.made[name])
        args = [value.args[0], relax.const(self._weight(name, value)), *value.args[2:]]
        call = relax.Call(value.op, args, value.attrs, value.ty_args)
        if name in self.sites.values() or op_name(value) != "matmul":
            return call
        bias = self._bias(name, np.zeros(value.args[1].ty.shape[1].value, np.float32))
        if not bias.any():
            return call
        added = f"{name}.bias" if f"{name}.bias" not in self.calls else f"{name}.bias.1"
        return graph.emit(relax.op.add(graph.emit(call, name), relax.const(bias)), added)

    def _weight(self, site: str, call: Expr) -> Float32:
        """Return a site's weight [K, N] or OIHW for both its input and its output."""
        weight: Float32 = call.args[1].value.numpy()
        inputs, outputs = (0, 1) if op_name(call) == "matmul" else (1, 0)
        if weight.shape[inputs] == 1 and op_name(call) != "matmul":
            inputs = 0  # depthwise: [C, 1, H, W]
        if site in self.taken:
            weight = weight * _along(self.taken[site].factors, inputs, weight.ndim)
        if site in self.made:
            weight = weight / _along(self.made[site].factors, outputs, weight.ndim)
        return weight

    def _bias(self, site: str, bias: Float32) -> Float32:
        """Return a site's bias, of the given shape, for both its input and its output."""
        changed = bias.reshape(-1).astype(np.float64)
        if site in self.taken and self.taken[site].shifts.any():
            weight = array_of(self.calls[site].args[1])
            assert weight is not None
            changed = changed + self.taken[site].shifts.astype(np.float64) @ weight.astype(np.float64)
        if site in self.made:
            changed = (changed - self.made[site].shifts) / self.made[site].factors
        return changed.astype(np.float32).reshape(bias.shape)


def _scaled_norm(call: Expr, balancing: Balancing) -> Expr:
    gamma, beta = (arg.value.numpy() for arg in call.args[1:3])
    constants = gamma / balancing.factors, (beta - balancing.shifts) / balancing.factors
    args = [call.args[0], *(relax.const(each.astype(np.float32)) for each in constants)]
    return relax.Call(call.op, args, call.attrs, call.ty_args)


def _along(factors: Float32, axis: int, rank: int) -> Float32:
    shape = [1] * rank
    shape[axis] = -1
    return factors.reshape(shape)
