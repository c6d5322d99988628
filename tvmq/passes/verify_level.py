"""Check that a module is what its level promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, bindings, op_name, used_vars
from tvmq.passes.remove_no_ops import RULES as NO_OPS
from tvmq.passes.restore_linear_rank import reshape_after_linear

Check = Callable[[tvm.IRModule], None]


def verify(mod: tvm.IRModule, level: str) -> None:
    """Raise ValueError naming the first binding that breaks level ("float", "canonical")."""
    if level not in CHECKS:
        raise ValueError(f"level {level!r}: unknown; levels are {', '.join(CHECKS)}")
    CHECKS[level](mod)


def verify_float(mod: tvm.IRModule) -> None:
    """One main of one dataflow block, built of Relax operators of known shape."""
    func = _main(mod)
    for binding in bindings(func):
        value = binding.value
        if isinstance(value, relax.Call) and not op_name(value):
            raise ValueError(f"{binding.var.name}: calls {value.op}, wanted a Relax operator")
        if isinstance(value.ty, relax.TensorType) and not isinstance(value.ty.shape, relax.ShapeExpr):
            raise ValueError(f"{binding.var.name}: has no known shape")


def verify_canonical(mod: tvm.IRModule) -> None:
    """Level float, and nothing left that canonicalize removes; every value named once."""
    verify_float(mod)
    func = _main(mod)
    repeated = [n for n, count in Counter(str(b.var.name) for b in bindings(func)).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]}: two values have this name")
    Rebuild(func, (_complain,)).run()


def _main(mod: tvm.IRModule) -> relax.Function:
    functions = {str(g.name_hint): f for g, f in mod.functions.items()}
    if "main" not in functions:
        raise ValueError(f"module: has no function main; it has {', '.join(functions) or 'none'}")
    blocks = functions["main"].body.blocks
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        raise ValueError(f"main: has {len(blocks)} blocks, wanted one dataflow block")
    return functions["main"]


def _complain(graph: Rebuild, var: Any, value: Expr) -> None:
    """A rule that changes nothing and objects to what a canonical module does not hold."""
    name = op_name(value)
    if name == "nn.batch_norm":
        raise ValueError(f"{var.name}: is a batch norm, which canonicalize folds")
    if any(rule(graph, var, value) is not None for rule in NO_OPS):
        raise ValueError(f"{var.name}: {name or 'item'} changes nothing or merges with its input")
    if name == "matmul" and reshape_after_linear(graph, var, value) is not None:
        raise ValueError(f"{var.name}: linear runs on a flattened tensor, wanted its natural rank")
    if name == "add" and array_of(value.args[0]) is not None:
        raise ValueError(f"{var.name}: add has its constant on the left, wanted on the right")
    if name and value.args and not any(True for _ in used_vars(value)):
        raise ValueError(f"{var.name}: {name} depends on constants alone, which canonicalize folds")


CHECKS: dict[str, Check] = {"float": verify_float, "canonical": verify_canonical}
