"""Check that a module is what its level promises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import tvm
from tvm import relax

from tvmq.passes.composites import attributes
from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, bindings, dtype_of, op_name, used_vars
from tvmq.passes.remove_no_ops import RULES as NO_OPS
from tvmq.passes.restore_linear_rank import reshape_after_linear
from tvmq.sites import MOVES

Check = Callable[[tvm.IRModule], None]

STORED = ("uint8", "int8", "int16")
REQUANTIZE = ("out_dtype", "low", "high", "fixed_point", "gain")
# What each kernel's leading parameters hold, and the numbers its attributes name.
KERNELS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "linear": (
        (STORED, ("int8",), ("int32",)),
        (*REQUANTIZE, "residual", "table"),
    ),
    "conv2d": (
        (STORED, ("int8",), ("int32",)),
        ("kernel_rows", "kernel_columns", "groups", "pad_value", *REQUANTIZE),
    ),
    "layer_norm": ((("int16",), ("int32",), ("int32",)), ("gain_shift", "epsilon", "limit", "low", "high")),
    "attention": (
        (("int8",),) * 3 + (("uint8",),),
        ("heads", "score_shift", "numerator", "norm_shift", "low", "high", "biases", "mask"),
    ),
    "pool": (
        (STORED,),
        ("operation", "kernel_rows", "kernel_columns", "multiplier", "shift", "out_dtype", "low", "high"),
    ),
    "table": ((("uint8",), ("uint8",)), ()),
}


def verify(mod: tvm.IRModule, level: str, *, float_sites: Sequence[str] = ()) -> None:
    """Raise ValueError naming the first binding that breaks level (a key of CHECKS, or "integer").

    float_sites: globs of the sites that a plan leaves in float; level integer excuses them and their bias.
    """
    if level == "integer":
        verify_integer(mod, float_sites)
    elif level in CHECKS:
        CHECKS[level](mod)
    else:
        raise ValueError(f"level {level!r}: unknown; levels are {', '.join((*CHECKS, 'integer'))}")


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


def verify_qdq(mod: tvm.IRModule) -> None:
    """Level float, every scale a positive constant, and integers read by nothing but views and dequantize."""
    verify_float(mod)
    for binding in bindings(_main(mod)):
        name, value = binding.var.name, binding.value
        if op_name(value) in ("quantize", "dequantize"):
            _check_scale(name, value)
        elif op_name(value) not in MOVES and any(dtype_of(var) in STORED for var in used_vars(value)):
            raise ValueError(f"{name}: {op_name(value) or 'item'} reads stored integers, wanted a dequantize")


def verify_integer(mod: tvm.IRModule, float_sites: Sequence[str] = ()) -> None:
    """Composites that say what they are, and no float operation between a dequantize and a quantize."""
    func = _main(mod)
    for gvar, composite in mod.functions.items():
        if str(gvar.name_hint) != "main":
            _check_composite(str(gvar.name_hint), composite)
    needed: set[Any] = set()  # floats that some quantize depends on
    rounded: set[Any] = set()  # floats that a quantize reads: a clip there says which codes it may give
    for binding in reversed(bindings(func)):
        if op_name(binding.value) == "quantize":
            rounded.update(used_vars(binding.value.args[0]))
        if op_name(binding.value) == "quantize" or (binding.var in needed and _is_float(binding.var)):
            needed.update(used_vars(binding.value))
    real: set[Any] = set()  # floats that came from integers
    for binding in bindings(func):
        name, value = str(binding.var.name), binding.value
        descends = any(var in real for var in used_vars(value))
        if not _is_float(binding.var) or not (descends or _leaves_integers(mod, value)):
            continue
        real.add(binding.var)
        excused = any(fnmatchcase(name.removesuffix(".bias"), pattern) for pattern in float_sites)
        excused |= op_name(value) == "clip" and binding.var in rounded
        if descends and binding.var in needed and op_name(value) not in MOVES and not excused:
            raise ValueError(f"{name}: {op_name(value) or 'call'} computes in float between integer sites")


def _is_float(var: Any) -> bool:
    return dtype_of(var).startswith("float")


def _leaves_integers(mod: tvm.IRModule, value: Expr) -> bool:
    """Whether value is the float form of stored integers."""
    if op_name(value) == "dequantize":
        return True
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)


def _check_scale(name: str, call: relax.Call) -> None:
    scale, zero = (array_of(arg) for arg in call.args[1:])
    if scale is None or zero is None:
        raise ValueError(f"{name}: has a scale or zero point that is no constant")
    if not ((scale > 0) & (scale < math.inf)).all():
        raise ValueError(f"{name}: has scale {float(scale.min()):.3g}, wanted one above 0")


def _check_composite(name: str, func: relax.Function) -> None:
    """A known kernel, its numbers in the attributes, parameters of its types, no float but a last factor."""
    found = attributes(func)
    if found.get("kernel") not in KERNELS or "site" not in found:
        kinds = ", ".join(KERNELS)
        raise ValueError(f"{name}: is no composite; wanted tvmq.kernel, one of {kinds}, and tvmq.site")
    params, numbers = KERNELS[found["kernel"]]
    missing = [number for number in numbers if number not in found]
    if missing:
        raise ValueError(f"{name}: lacks the attribute tvmq.{missing[0]}")
    for param, wanted in zip(func.params, params, strict=False):
        if dtype_of(param) not in wanted:
            raise ValueError(f"{name}: {param.name} is {dtype_of(param)}, wanted {' or '.join(wanted)}")
    allowed = ("astype", "multiply") if found.get("out_dtype") == "float32" else ()
    for binding in bindings(func):
        if _is_float(binding.var) and op_name(binding.value) not in allowed:
            raise ValueError(f"{name}: {op_name(binding.value)} computes in float")


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


CHECKS: dict[str, Check] = {"float": verify_float, "canonical": verify_canonical, "qdq": verify_qdq}
