"""Take a module apart into kernels that can be timed by themselves: those of each site, and the rest.

What no kernel of tvmq computes is lowered alone, as `build` lowers it in a model: an element-wise chain, a
float convolution, a table. Between two sites of a model it may be fused with more than its site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax
from tvm.relax import op

from tvmq import bit_planes
from tvmq.bit_planes import BYTE
from tvmq.build import loop_passes
from tvmq.passes.composites import attributes
from tvmq.passes.rebuild import bindings, op_name, operands, sequence, substitute
from tvmq.runtime import ALIGNMENT
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import NO_DECISIONS, Use
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile

ORDINALS = (r"\.phase\d+$", r"\.\d+$")  # what lowering adds to a site's name where it has several calls
CONVERSIONS = ("quantize", "dequantize")
MULTIPLIES = re.compile("matmul|linear|conv2d|depthwise|dense|attention")
WHICH = re.compile(r"(_keys|_values)?_[\dx]+(_w\d)?$")  # of a family, at the end of a kernel's name
VIEW = re.compile(r"reshape\d*$")
MOVE = re.compile(r"(fused_)?((reshape|transpose)\d*_?)+$")
# Constants of a kernel's key that differ from layer to layer and take no time, as long as they are there.
IDLE = {"low": 0, "high": 0, "zero_point": 0, "pad_value": 0, "copy": (8, 0)}


@dataclass(frozen=True, slots=True)
class Work:
    """A kernel of a site, or of none."""

    use: Use
    decisions: Decisions
    macs: int = 0  # multiply-accumulates of one call

    @property
    def key(self) -> str:
        """Return what a store knows it by: kernels of one key take the same time."""
        kernel = self.use.kernel
        what = kernel.semantics if kernel.tuned_as is not None else repr(_without_idle(kernel.key))
        tuned = dict(sorted(self.decisions.items()))
        return f"{what} {tuned}" if tuned != dict(sorted(kernel.space.default.items())) else what

    @property
    def family(self) -> str:
        """Return which kernels are like it: "linear", "conv2d", "float_linear", and loops that TVM makes."""
        if self.use.kernel.packing:
            return WHICH.sub("", self.use.kernel.name)
        return "multiplying loops" if self.macs else "loops"

    @property
    def constant_bytes(self) -> int:
        """Return the size of the constants it reads."""
        return sum(array.nbytes for array in self.use.arguments if array is not None)

    @property
    def stored_bytes(self) -> int:
        """Return the size of its constants in the artifact, where few bits are few, whatever memory holds."""
        return sum(_stored_bytes(array) for array in self.use.arguments if array is not None)


@dataclass(frozen=True, slots=True)
class Works:
    """A module taken apart."""

    sites: Mapping[str, tuple[Work, ...]]
    rest: tuple[Work, ...]  # views, adds, joins of values
    calls: int  # of kernels, in the whole module
    rest_bytes: int  # of the constants of no site


class Parts:
    """Takes modules apart for one machine; what looks alike is lowered once."""

    def __init__(
        self, profile: TargetProfile, threads: int, decisions: Mapping[str, Decisions] = NO_DECISIONS
    ) -> None:
        self._profile, self._threads, self._decisions = profile, threads, decisions
        self._target = profile.tvm()
        self._known: dict[str, tuple[Work, ...]] = {}

    def integer(self, mod: tvm.IRModule, macs: Mapping[str, int], left_float: AbstractSet[str]) -> Works:
        """Return the works of an integer-level module.

        macs: by site, for all sites. left_float: bindings that stay float, which are no part of the result,
        and neither is what converts between integers and floats.
        """
        dispatch: Any = DispatchKernels(self._profile, self._threads, self._decisions)
        dispatched = dispatch(mod)
        sites: dict[str, list[Work]] = {}
        for call in dispatch.calls:
            arrays = tuple(_array(argument) for argument in call.arguments)
            sites.setdefault(_site(call.site, macs), []).append(self._work(call.kernel, arrays))
        cut: set[str] = set(left_float)
        for binding in bindings(dispatched["main"]):
            attrs = _composite(dispatched, binding.value)
            if attrs:
                alone = self._alone(dispatched, [binding])
                sites.setdefault(_site(str(attrs["site"]), macs), []).extend(alone)
            if attrs or op_name(binding.value) in CONVERSIONS:
                cut.add(str(binding.var.name))
        kernels = {g.name_hint for g, f in dispatched.functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
        rest_mod = without(dispatched, cut)
        rest = self._lowered(rest_mod, kernels)
        found = {site: _with_macs(works, macs.get(site, 0)) for site, works in sites.items()}
        calls = sum(map(len, sites.values())) + len(rest)
        return Works(found, rest, calls, sum(work.stored_bytes for work in rest))

    def floats(self, mod: tvm.IRModule, names: Sequence[str], macs: int) -> tuple[Work, ...]:
        """Return the works of bindings of a canonical module, in graph order, as float operations."""
        wanted = set(names)
        found = [b for b in bindings(mod["main"]) if str(b.var.name) in wanted]
        return _with_macs(self._alone(mod, found), macs)

    def conversion(self, shape: Sequence[int], dtype: str, *, to_float: bool) -> tuple[Work, ...]:
        """Return what quantizes to dtype, or dequantizes from it, a tensor."""
        x = relax.Var("x", relax.TensorType(tuple(shape), dtype if to_float else "float32"))
        scale, zero = relax.const(np.float32(0.5)), relax.const(1, dtype)
        value = (
            op.dequantize(x, scale, zero, axis=-1)
            if to_float
            else op.quantize(x, scale, zero, axis=-1, out_dtype=dtype)
        )
        normal = relax.BlockBuilder().normalize(value)
        return self._alone(None, [relax.VarBinding(relax.Var("y", normal.ty), normal)])

    def _alone(self, mod: tvm.IRModule | None, several: Sequence[Any]) -> tuple[Work, ...]:
        if not several:
            return ()
        known = f"{tvm_ffi.structural_hash(isolated(mod, several, constants=False)):x}"
        if known not in self._known:
            works = self._lowered(isolated(mod, several), frozenset())
            # Inside of a model a reshape is a view; the last one here writes a result. And what a float
            # convolution's layout moves here, its neighbours have in that layout.
            own = any(op_name(binding.value) == "permute_dims" for binding in several)
            idle = VIEW if own else MOVE
            self._known[known] = tuple(w for w in works if not idle.match(w.use.kernel.name))
        return self._known[known]

    def _lowered(self, mod: tvm.IRModule, kernels: AbstractSet[str]) -> tuple[Work, ...]:
        """Return the works of a module's main but for calls of these kernels."""
        floats: Any = DispatchFloats(self._profile, self._threads, self._decisions)
        with tvm.transform.PassContext(opt_level=3), self._target:
            dispatched = floats(mod)
            lowered = tvm.transform.Sequential(loop_passes(self._target))(dispatched)
        by_name = {use.kernel.name: use.kernel for use in floats.uses.values()}
        found = []
        for binding in bindings(lowered["main"]):
            call = binding.value
            if op_name(call) != "call_tir" or call.args[0].name_hint in kernels:
                continue
            function = call.args[0]
            arrays = tuple(_array(argument) for argument in call.args[1].fields)
            name = re.sub(r"_\d+$", "", function.name_hint)
            kernel = by_name.get(name) or _loops(function.name_hint, lowered[function])
            found.append(self._work(kernel, arrays))
        return tuple(found)

    def _work(self, kernel: Kernel, arrays: tuple[Any, ...]) -> Work:
        found = self._decisions.get(kernel.semantics)
        decisions = found if found is not None and found in kernel.space else kernel.space.default
        return Work(Use(kernel, 1, arrays), decisions)


def isolated(mod: tvm.IRModule | None, several: Sequence[Any], *, constants: bool = True) -> tvm.IRModule:
    """Return a module that computes the last of several bindings of mod's main from what they read.

    Without constants these are parameters, too: modules that differ in weights only are then equal.
    """
    inside = {binding.var for binding in several}
    replaced: dict[Any, Any] = {}
    parameters: list[Any] = []
    for leaf in (leaf for binding in several for leaf in operands(binding.value)):
        free = isinstance(leaf, relax.Var) or (not constants and len(leaf.ty.shape) > 0)
        if free and leaf not in inside and leaf not in replaced:
            replaced[leaf] = relax.Var(f"p{len(parameters)}", leaf.ty)
            parameters.append(replaced[leaf])
    out: list[Any] = []
    for binding in several:
        last = binding is several[-1]
        var = (relax.Var if last else relax.DataflowVar)(f"v{len(out)}", binding.var.ty)
        out.append(relax.VarBinding(var, _replaced(binding.value, replaced)))
        replaced[binding.var] = var
    body = sequence([relax.DataflowBlock(out)], out[-1].var)
    main = relax.Function(parameters, body, out[-1].var.ty, is_pure=True).with_attr("global_symbol", "main")
    called = {} if mod is None else dict(_called(mod, several))
    return tvm.IRModule({**called, tvm.ir.GlobalVar("main"): main})


def without(mod: tvm.IRModule, names: AbstractSet[str]) -> tvm.IRModule:
    """Return mod with the bindings of main that are called so as parameters instead."""
    main = mod["main"]
    parameters, kept, replaced = list(main.params), [], {}
    for binding in bindings(main):
        if str(binding.var.name) in names:
            replaced[binding.var] = relax.Var(f"cut{len(parameters)}", binding.var.ty)
            parameters.append(replaced[binding.var])
        else:
            kept.append(relax.VarBinding(binding.var, substitute(binding.value, replaced)))
    if not replaced:
        return mod
    result = substitute(main.body.body, replaced)
    body = sequence([relax.DataflowBlock(kept)], result)
    func = relax.Function(parameters, body, result.ty, main.is_pure, main.attrs)
    return relax.transform.DeadCodeElimination(["main"])(tvm.IRModule({**mod.functions, _main(mod): func}))


def _stored_bytes(array: npt.NDArray[Any]) -> int:
    if array.dtype != np.int8:
        return int(array.nbytes)
    bits = bit_planes.bits_worth_storing(array, ALIGNMENT)
    return array.size if bits == BYTE else bit_planes.stored_size(bits, array.size, ALIGNMENT)


def peak_bytes(main: relax.Function) -> int:
    """Return the most bytes that the values of a function take at one time, inputs and constants left out."""
    order = list(bindings(main))
    owner: dict[Any, Any] = {}
    for binding in order:
        source = binding.value.args[0] if op_name(binding.value) == "reshape" else None
        item = binding.value.tuple_value if isinstance(binding.value, relax.TupleGetItem) else source
        owner[binding.var] = owner.get(item, binding.var)
    last: dict[Any, int] = {}
    for at, value in enumerate([*(b.value for b in order), main.body.body]):
        last |= {owner[leaf]: at for leaf in operands(value) if leaf in owner}
    ends: dict[int, int] = {}
    live = most = 0
    for at, binding in enumerate(order):
        if owner[binding.var].same_as(binding.var):
            size = _nbytes(binding.var.ty)
            live += size
            ends[last.get(binding.var, at)] = ends.get(last.get(binding.var, at), 0) + size
        most = max(most, live)
        live -= ends.get(at, 0)
    return most


def _nbytes(ty: Any) -> int:
    if isinstance(ty, relax.TupleType):
        return sum(map(_nbytes, ty.fields))
    if not isinstance(ty, relax.TensorType):
        return 0
    size = 1 if str(ty.dtype) == "bool" else np.dtype(str(ty.dtype)).itemsize
    return int(np.prod([int(d) for d in ty.shape], dtype=np.int64)) * size


def _without_idle(key: Any) -> Any:
    """Return a kernel's key as text and tuples, its idle constants all alike."""
    if isinstance(key, tuple):
        return tuple(_without_idle(part) for part in key)
    if not is_dataclass(key) or isinstance(key, type):
        return key
    values = {each.name: getattr(key, each.name) for each in fields(key)}
    alike = {name: IDLE[name] for name, value in values.items() if name in IDLE and value not in (None, 0)}
    parts = (f"{name}={_without_idle(value)!r}" for name, value in (values | alike).items())
    return f"{type(key).__name__}({', '.join(parts)})"


def _with_macs(works: Iterable[Work], macs: int) -> tuple[Work, ...]:
    """Share a site's multiply-accumulates out among those of its works that multiply."""
    several = list(works)
    multiply = [work for work in several if MULTIPLIES.search(work.use.kernel.name)] or several[:1]
    return tuple(replace(w, macs=macs // len(multiply)) if w in multiply else w for w in several)


def _site(name: str, sites: Mapping[str, int]) -> str:
    for pattern in ORDINALS:
        if name in sites:
            break
        name = re.sub(pattern, "", name)
    return name


def _composite(mod: tvm.IRModule, call: Any) -> dict[str, Any]:
    called = isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar)
    return attributes(mod[call.op]) if called else {}


def _called(mod: tvm.IRModule, several: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    for binding in several:
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar):
            yield binding.value.op, mod[binding.value.op]


def _replaced(value: Any, replaced: Mapping[Any, Any]) -> Any:
    """Return value with leaves replaced, constants among them."""
    if isinstance(value, relax.Var | tvm.ir.GenericConst):
        return replaced.get(value, value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_replaced(each, replaced) for each in value.fields])
    if isinstance(value, relax.Call):
        arguments = [_replaced(each, replaced) for each in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args, ret_ty=value.ty)
    if isinstance(value, relax.TupleGetItem):
        return relax.BlockBuilder().normalize(
            relax.TupleGetItem(_replaced(value.tuple_value, replaced), value.index)
        )
    return value


def _loops(name: str, func: Any) -> Kernel:
    shapes = [f"{p.ty.dtype}{[int(d) for d in p.shape]}" for p in func.params]
    key = (name, *shapes, f"{tvm_ffi.structural_hash(func.without_attr('global_symbol')):x}")
    build: Callable[[], Any] = lambda: func  # noqa: E731
    return Kernel(key, name, (), build)


def _main(mod: tvm.IRModule) -> Any:
    return mod.get_global_var("main")


def _array(expr: Any) -> Any:
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None
