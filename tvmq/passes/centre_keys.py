"""Give attention keys a bias that puts their mean at zero.

    Before:  k = add(matmul(x, K), b)     attention(q, k, v)
    After:   k = add(matmul(x, K), c)     attention(q, k, v)

Softmax takes no notice of a number added to all logits of a row, and q . (c - b) is such a number: any bias
of the keys gives the same attention, whatever the mask. Trained models leave offsets of many standard
deviations in some channels; with one scale per tensor, these cost the others most of their bits.
SageAttention (Zhang et al. 2025) subtracts the mean of each input's keys; here it costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.passes.balance_groups import ATTENTIONS
from tvmq.passes.linear_graph import LinearGraph
from tvmq.passes.rebuild import Expr, Rebuild, Var, rebuild

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """The linear, with a bias, that makes the keys of one attention and nothing else."""

    site: str
    source: str  # the value that it reads, [..., C]
    bias: str  # the addition of its bias
    weight: Float32 = field(repr=False)  # [C, N]


@tvm.transform.module_pass(opt_level=0, name="CentreKeys")
class CentreKeys:
    """Replace the biases of keys; the function stays the same but for rounding."""

    def __init__(self, biases: Mapping[str, Float32]) -> None:
        """biases: by the name of a key's bias addition, [N]."""
        self.biases = dict(biases)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with the biases replaced."""
        known = {key.bias for key in find_keys(mod)}
        unknown = sorted(set(self.biases) - known)
        if unknown:
            raise ValueError(f"centre_keys: {unknown[0]!r} adds no bias to keys; {sorted(known)} do")
        return rebuild(mod, self._rule)

    def _rule(self, _rebuild: Rebuild, var: Var, value: Expr) -> Expr | None:
        bias = self.biases.get(var.name)
        if bias is None:
            return None
        shape = value.args[1].value.numpy().shape
        constant = relax.const(bias.reshape(shape).astype(np.float32))
        return relax.Call(value.op, [value.args[0], constant], value.attrs, value.ty_args)


def find_keys(mod: tvm.IRModule) -> tuple[Key, ...]:
    """Return the keys of main's attentions whose bias is free, in graph order."""
    graph = LinearGraph(mod["main"])
    found = []
    for var, call in graph.values.items():
        made = graph.linear_before(call.args[1]) if graph.op(var) in ATTENTIONS else None
        if made is not None and made[1] is not None:
            linear = graph.values[made[0]]
            weight = linear.args[1].value.numpy()
            found.append(Key(made[0].name, linear.args[0].name, made[1].name, weight))
    return tuple(found)
