"""Bound the indices of every take: an index outside the table must not read outside memory."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmq.passes.rebuild import Expr, Rebuild, Var, op_name, rebuild


@tvm.transform.module_pass(opt_level=0, name="ClipTakes")
class ClipTakes:
    """Before the lowering to loops.

    Before: lv = take(table, ids, axis=0, mode="fast")
    After:  lv = take(table, ids, axis=0, mode="clip")

    The importers ask for "fast", which trusts its indices: token ids from a caller, for one.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        """Return mod with clipped takes; indices within bounds give what they gave."""
        return rebuild(mod, _clipped)


def _clipped(graph: Rebuild, var: Var, value: Expr) -> Expr | None:
    if op_name(value) != "take" or value.attrs.mode != "fast":
        return None
    return relax.op.take(*value.args, axis=value.attrs.axis, mode="clip")
