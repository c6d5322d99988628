"""Name the variables of a float module after the source model's modules.

Before:  lv11 = R.matmul(lv9, R.permute_dims(p_blocks_0_attn_qkv_weight))
After:   blocks.0.attn.qkv = R.matmul(lv9, R.permute_dims(<constant>))

Importers keep only the parameters' names, so the path of a call is read off the weight that reaches it,
through operators that only rearrange it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmq.errors import UnsupportedModelError

# Operators whose result is still the weight that is their first argument.
REARRANGING = frozenset(
    "relax." + name
    for name in ("permute_dims", "reshape", "astype", "broadcast_to", "expand_dims", "squeeze", "dequantize")
)

# The arguments, first choice first, that tell whose call it is.
WEIGHT_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "relax.matmul": (1, 0),
    "relax.take": (0,),
    "relax.nn.conv1d": (1,),
    "relax.nn.conv2d": (1,),
    "relax.nn.conv3d": (1,),
    "relax.nn.conv1d_transpose": (1,),
    "relax.nn.conv2d_transpose": (1,),
    "relax.nn.layer_norm": (1, 2),
    "relax.nn.group_norm": (1, 2),
    "relax.nn.batch_norm": (1, 2),
}


def name_and_bind(mod: tvm.IRModule, full_names: Mapping[str, str]) -> tvm.IRModule:
    """Name the sites of main and bind its weights, which the importer left as parameters, as constants.

    full_names: parameter of main -> full name in the model (`blocks.0.attn.qkv.weight`); weights that are
    missing there name nothing.
    """
    main = mod["main"]
    inputs = int(main.attrs["num_input"])
    weights = main.params[inputs:]
    values = list(main.attrs["params"]) if "params" in main.attrs else []
    named = name_sites(main.without_attr("params"), full_names)
    mod = tvm.IRModule({"main": named})
    binding = {var.name: value for var, value in zip(weights, values, strict=True)}
    return relax.transform.BindParams("main", binding)(mod)


def name_sites(func: relax.Function, full_names: Mapping[str, str]) -> relax.Function:
    """Return func with the variable of every weight-using call named after its module; names are unique."""
    bindings = _bindings(func)
    paths = _site_paths(func.params, bindings, full_names)
    taken = {var.name for var in func.params} | {b.var.name for b in bindings}
    names: dict[relax.Var, str] = {}
    for var, path in paths.items():
        names[var] = _unique(path, taken)
        taken.add(names[var])
    return _Rename(names).visit_expr(func)


def _bindings(func: relax.Function) -> list[relax.VarBinding]:
    blocks = func.body.blocks
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        raise UnsupportedModelError(
            "model: holds control flow that depends on data, tvmq compiles straight-line programs only; "
            "replace the branch or loop by tensor operators, or export the part of the model without it"
        )
    return list(blocks[0].bindings)


def _site_paths(
    params: Iterable[relax.Var], bindings: list[relax.VarBinding], full_names: Mapping[str, str]
) -> dict[relax.Var, str]:
    origin = {var: full_names[var.name] for var in params if var.name in full_names}
    scaled: dict[relax.Var, str] = {}  # product with `<path>.weight` -> path, half a decomposed norm
    paths: dict[relax.Var, str] = {}
    for binding in bindings:
        var, value = binding.var, binding.value
        if isinstance(value, relax.Var) and value in origin:
            origin[var] = origin[value]
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
            continue
        op, sources = value.op.name, [origin.get(a) if isinstance(a, relax.Var) else None for a in value.args]
        if op in REARRANGING and sources[0]:
            origin[var] = sources[0]
        elif op == "relax.multiply":
            gains = [s for s in sources if s and s.endswith(".weight")]
            scaled.update((var, gain.removesuffix(".weight")) for gain in gains)
        path = _norm_path(value, sources, scaled) if op == "relax.add" else _call_path(op, sources)
        if path:
            paths[var] = path
    return paths


def _call_path(op: str, sources: list[str | None]) -> str | None:
    found = [sources[i] for i in WEIGHT_ARGUMENTS.get(op, ()) if i < len(sources) and sources[i]]
    return module_path(found[0]) if found and found[0] else None


def _norm_path(add: relax.Call, sources: list[str | None], scaled: Mapping[relax.Var, str]) -> str | None:
    """Return P when add is `x * P.weight + P.bias`, the end of a layer norm that the exporter took apart."""
    for bias, other in ((sources[1], add.args[0]), (sources[0], add.args[1])):
        path = scaled.get(other) if isinstance(other, relax.Var) else None
        if path and bias == f"{path}.bias":
            return path
    return None


def module_path(full_name: str) -> str:
    """Return the module that owns a parameter: `a.b.weight` -> `a.b`, `a.in_proj_weight` -> `a.in_proj`.

    Any other parameter is its own site (`a.relative_position_bias_table`); '' for the root's own weight.
    """
    path, _, leaf = full_name.rpartition(".")
    if leaf in ("weight", "bias"):
        return path
    stem = leaf.removesuffix("_weight")
    return f"{path}.{stem}" if path else stem


def _unique(path: str, taken: set[str]) -> str:
    """Return path, or path.1, path.2, ... for a module that is called again."""
    name, count = path, 0
    while name in taken:
        count += 1
        name = f"{path}.{count}"
    return name


@mutator
class _Rename(PyExprMutator):  # type: ignore[misc]
    """Rebuild a function with new variables; a BlockBuilder would change the dots of their names."""

    def __init__(self, names: Mapping[relax.Var, str]) -> None:
        super().__init__()
        self.names = names

    def visit_dataflow_var_def_(self, var: relax.DataflowVar) -> relax.Var:
        return self._renamed(var, relax.DataflowVar)

    def visit_var_def_(self, var: relax.Var) -> relax.Var:
        return self._renamed(var, relax.Var)

    def _renamed(self, var: relax.Var, kind: type[relax.Var]) -> relax.Var:
        if var not in self.names:
            return var
        new = kind(self.names[var], var.ty)
        self.set_var_remap(var, new)
        return new
