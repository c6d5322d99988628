"""Give every value of a function a name that says what it is."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Var, bindings, op_name, rename
from tvmq.passes.unary_chains import chains_of

NAMED_SITES = ("matmul", "nn.conv2d", "nn.conv2d_transpose", "nn.layer_norm")
ATTENTION = ("nn.attention", "nn.attention_bias")
RELAX_NAME = re.compile(r"(lv|gv)\d*(\.[qkv])?")  # of a builder, and of a split linear that had no path
FUSED = ("qkv", "in_proj", "query_key_value", "c_attn")


@tvm.ir.transform.module_pass(opt_level=0, name="NameValues")
class NameValues:
    """Name every binding, uniquely: sites by their module's path, the rest `<op>.<ordinal>`.

    Before: blocks.0.attn.qkv.q = matmul(x, W); lv = add(.., b); lv1 = reshape(lv); ..; lv9 = attention(..)
    After:  blocks.0.attn.qkv.q; blocks.0.attn.qkv.q.bias; reshape.0; ..; blocks.0.attn
    The last of a chain of element-wise operators that will be one table is `table.<ordinal>`.
    The bias add of a site is `<site>.bias`; an attention is called by what its q, k and v have in common.
    """

    def transform_module(self, mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        result = mod.clone()
        for name, func in mod.functions.items():
            if isinstance(func, relax.Function) and isinstance(func.body, relax.SeqExpr):
                result.update_func(name, rename(func, names_of(func)))
        return result


def names_of(func: relax.Function) -> dict[Var, str]:
    """Return the canonical name of every variable bound in func."""
    pairs = [(b.var, b.value) for b in bindings(func)]
    values = dict(pairs)
    tables = chains_of(func).by_result
    names = {p: str(p.name) for p in func.params}
    taken = set(names.values())
    ordinals: Counter[str] = Counter()
    # Paths first, so that no automatic name can take one.
    for var, value in pairs:
        if op_name(value) in NAMED_SITES and _is_site(value) and _is_path(str(var.name), value):
            names[var] = _unique(str(var.name), taken)
    for var, value in pairs:
        short = "table" if var in tables else _short_name(value)
        ordinal = ordinals[short]
        ordinals[short] += 1
        if var not in names:
            wanted = _bias_name(value, values, names) or _attention_name(value, values, names)
            names[var] = _unique(wanted or f"{short}.{ordinal}", taken)
    return names


def _is_site(value: Expr) -> bool:
    return len(value.args) > 1 and array_of(value.args[1]) is not None


def _is_path(name: str, value: Expr) -> bool:
    """name was given by the model ("features.0"), not by Relax or by an earlier run of this pass."""
    automatic = re.fullmatch(rf"{_short_name(value)}\.\d+", name) or RELAX_NAME.fullmatch(name)
    return automatic is None


def _short_name(value: Expr) -> str:
    if op_name(value):
        return op_name(value).rsplit(".", 1)[-1]
    return "tuple" if isinstance(value, relax.Tuple) else "item"


def _unique(wanted: str, taken: set[str]) -> str:
    name, repeat = wanted, 1
    while name in taken:
        name, repeat = f"{wanted}.{repeat}", repeat + 1
    taken.add(name)
    return name


def _bias_name(value: Expr, values: dict[Var, Expr], names: dict[Var, str]) -> str | None:
    if op_name(value) != "add" or array_of(value.args[1]) is None:
        return None
    source = values.get(value.args[0]) if isinstance(value.args[0], relax.Var) else None
    if op_name(source) not in NAMED_SITES[:3] or not _is_site(source):
        return None
    return f"{names[value.args[0]]}.bias"


def _attention_name(value: Expr, values: dict[Var, Expr], names: dict[Var, str]) -> str | None:
    if op_name(value) not in ATTENTION:
        return None
    paths = [_path_of(a, values, names) for a in value.args[:3]]
    if any(p is None for p in paths):
        return None
    split = [str(p).split(".") for p in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    if shared and any(word in shared[-1] for word in FUSED):
        shared.pop()
    return ".".join(shared) or None


def _path_of(expr: Expr, values: dict[Var, Expr], names: dict[Var, str]) -> str | None:
    """Return the path of the linear that expr comes from, through its bias and what moves rows."""
    through = ("reshape", "add", "permute_dims", "take")
    while isinstance(expr, relax.Var) and op_name(values.get(expr)) in through:
        expr = values[expr].args[0]
    name = names.get(expr)
    return name if name is not None and _is_path(name, values.get(expr)) else None
