"""The sites of a module: the calls that a precision is chosen for, and the patterns that name them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tvmq.errors import UsageError

if TYPE_CHECKING:
    import tvm

# Operators that only move values: they carry their input's precision and are no sites.
VIEWS = ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten", "broadcast_to")
PICKS = (
    "concat",
    "split",
    "strided_slice",
    "take",
    "gather_elements",
    "index_tensor",
    "stack",
    "tile",
    "repeat",
)
MOVES = frozenset((*VIEWS, *PICKS, "astype", "nn.pad"))
KINDS = {"nn.attention_bias": "attention"}  # where the kind is not the operator's last name


@dataclass(frozen=True, slots=True)
class Site:
    """One call: id is its binding's name, kind "linear", "conv2d", "attention", "gelu", ...

    macs counts multiply-accumulates of one run at the module's batch size; 0 for what multiplies no matrices.
    """

    id: str
    kind: str
    macs: int


def sites(mod: tvm.IRModule) -> tuple[Site, ...]:
    """Return the sites of a canonical module in graph order. A bias add belongs to its linear map."""
    found = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            name, operator = str(binding.var.name), _operator(binding.value)
            if operator and operator not in MOVES and not _is_bias(name, operator):
                found.append(Site(name, _kind(operator, binding.value), _macs(operator, binding.value)))
    return tuple(found)


def match_sites(patterns: Sequence[str], ids: Sequence[str]) -> frozenset[str]:
    """Return the ids that any glob of patterns names; a pattern that names none is an error.

    Raises UsageError with the nearest ids.
    """
    matched: set[str] = set()
    for pattern in patterns:
        hits = {i for i in ids if fnmatchcase(i, pattern)}
        if not hits:
            raise UsageError(_no_match(pattern, ids))
        matched |= hits
    return frozenset(matched)


def _no_match(pattern: str, ids: Sequence[str]) -> str:
    bare = pattern.replace("*", "").replace("?", "").strip(".")
    near = difflib.get_close_matches(bare, ids, n=3, cutoff=0.4) or list(ids[:3])
    return f"pattern {pattern!r}: names no site of this model; near matches: {', '.join(near) or 'none'}"


def _operator(value: Any) -> str:
    name = getattr(getattr(value, "op", None), "name", "")
    return str(name).removeprefix("relax.") if str(name).startswith("relax.") else ""


def _is_bias(name: str, operator: str) -> bool:
    return operator == "add" and name.endswith(".bias")


def _kind(operator: str, call: Any) -> str:
    if operator == "matmul" and _is_constant(call.args[1]):
        return "linear"
    return KINDS.get(operator, operator.rsplit(".", 1)[-1])


def _macs(operator: str, call: Any) -> int:
    if operator == "matmul":
        return math.prod(_shape(call)) * _shape(call.args[0])[-1]
    if operator == "nn.conv2d":  # weights [O, I / groups, kh, kw]
        return math.prod(_shape(call)) * math.prod(_shape(call.args[1])[1:])
    if operator == "nn.conv2d_transpose":  # weights [I, O / groups, kh, kw]
        return math.prod(_shape(call.args[0])) * math.prod(_shape(call.args[1])[1:])
    if operator in ("nn.attention", "nn.attention_bias"):
        batch, rows, heads, depth = _shape(call.args[0])
        columns, value_depth = _shape(call.args[1])[1], _shape(call.args[2])[3]
        return batch * heads * rows * columns * (depth + value_depth)
    return 0


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape)


def _is_constant(expr: Any) -> bool:
    return type(expr).__name__ == "GenericConst"
