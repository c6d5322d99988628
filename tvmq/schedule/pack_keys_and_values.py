"""Let the linears that make an attention's keys and values store them as its kernel wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax
from tvm.relax import op

from tvmq.passes.composite_body import KERNEL, SITE, Body
from tvmq.passes.composites import attributes
from tvmq.passes.rebuild import Expr, Rebuild, Var, bindings, rebuild, substitute, used_vars
from tvmq.schedule import kernels, packed_operand
from tvmq.schedule.packed_operand import KEYS, OPERAND_LINEAR, PACKED_ATTENTION, VALUES, PackedOperand
from tvmq.schedule.specs import attention_spec_of
from tvmq.target import TargetProfile

PLACES = {1: KEYS, 2: VALUES}  # arguments of an attention
Emit = Callable[[Expr], Var]


@tvm.ir.transform.module_pass(opt_level=0, name="PackKeysAndValues")
class PackKeysAndValues:
    """Change the layout of keys and values where the profile has kernels that write and read it.

    Before: k = linear_1(x, ...); v = linear_2(x, ...)                  int8 [tokens, heads * head_dim]
            a = attention_3(q, k, v, ...)
    After:  lv = linear_1_keys(x, ...); lv1 = linear_2_values(x, ...)   int8, see packed_operand
            a = attention_3_packed(q, lv, lv1, ...)
            k = reshape(...(lv)), for a function beside main that reads k, too

    Only where main reads the keys and values nowhere else; linears compute the same numbers. The new
    functions hold the old ones' ops and those that pack or unpack, so any level of the module says what it
    computes.
    """

    if TYPE_CHECKING:  # module_pass makes it callable

        def __call__(self, mod: tvm.IRModule) -> tvm.IRModule: ...

    def __init__(self, profile: TargetProfile) -> None:
        self.profile = profile

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with such attentions and their linears in all of its functions."""
        packed = [each for each in _attentions(mod) if self._has_kernels(mod, each)]
        if not packed:
            return mod
        result = mod.clone()
        builder = relax.BlockBuilder(result)
        calls: dict[Any, _Replaced] = {}
        for attention in packed:
            for gvar, layout in attention.linears.items():
                func = _operand_linear(mod[gvar], layout)
                calls[gvar] = _Replaced(builder.add_func(func, f"{gvar.name_hint}_{layout.operand}"), layout)
            func = _packed_attention(mod[attention.gvar], list(attention.linears.values()))
            calls[attention.gvar] = _Replaced(builder.add_func(func, f"{attention.gvar.name_hint}_packed"))
        rewritten = rebuild(builder.get(), _Rule(calls))
        return tvm.IRModule({g: f for g, f in rewritten.functions.items() if g not in calls}, attrs=mod.attrs)

    def _has_kernels(self, mod: tvm.IRModule, attention: _Attention) -> bool:
        wanted = [({**attention.attrs, KERNEL_ATTR: PACKED_ATTENTION}, attention.shapes)]
        for gvar, layout in attention.linears.items():
            attrs = attributes(mod[gvar])
            if attrs[KERNEL_ATTR] != "linear" or attrs["out_dtype"] != "int8":
                return False
            wanted.append((_operand_attrs(attrs, layout), _shapes(mod[gvar].params)))
        found = (kernels.find(attrs, shapes, self.profile, threads=1) for attrs, shapes in wanted)
        return all(kernel is not None for kernel in found)


KERNEL_ATTR = KERNEL.removeprefix("tvmq.")


@dataclass(frozen=True, slots=True)
class _Attention:
    """An attention whose keys and values nobody else reads in main, and the functions that make these."""

    gvar: Any
    attrs: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    linears: Mapping[Any, PackedOperand]


@dataclass(frozen=True, slots=True)
class _Replaced:
    """What a function has become; the layout of its result, where that has changed."""

    gvar: Any
    layout: PackedOperand | None = None


def _attentions(mod: tvm.IRModule) -> list[_Attention]:
    main, readers = mod["main"], dict[Any, int]()
    for value in [*(b.value for b in bindings(main)), main.body.body]:
        for var in used_vars(value):
            readers[var] = readers.get(var, 0) + 1
    values = {b.var: b.value for b in bindings(main)}
    found = []
    for call in values.values():
        attrs = attributes(mod[call.op]) if _calls_function(call) else {}
        if attrs.get(KERNEL_ATTR) != "attention":
            continue
        shapes = _shapes(call.args)
        spec = attention_spec_of(attrs, shapes)
        makers: list[Any] = [values.get(call.args[place]) for place in PLACES]
        alone = all(readers.get(call.args[place]) == 1 for place in PLACES)
        if alone and all(map(_calls_function, makers)) and packed_operand.supports(spec) is None:
            layouts = [PackedOperand.of(spec, name) for name in PLACES.values()]
            linears = dict(zip((maker.op for maker in makers), layouts, strict=True))
            found.append(_Attention(call.op, attrs, shapes, linears))
    return found


def _calls_function(value: Any) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)


def _shapes(arguments: Sequence[Expr]) -> list[tuple[int, ...]]:
    return [tuple(int(d) for d in argument.ty.shape) for argument in arguments]


class _Rule:
    """The rule for rebuild: calls of replaced functions, and what their results are."""

    def __init__(self, calls: Mapping[Any, _Replaced]) -> None:
        self.calls = calls
        self.packed: dict[Var, Var] = {}  # the plain value -> the packed one that it is unpacked from

    def __call__(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        replaced = self.calls.get(value.op) if _calls_function(value) else None
        if replaced is None:
            return None
        if replaced.layout is None:
            args = [self._packed_of(graph, i, arg) for i, arg in enumerate(value.args)]
            return relax.Call(replaced.gvar, args)
        packed = graph.emit(relax.Call(replaced.gvar, value.args))
        plain = unpacked(graph.emit, packed, replaced.layout)
        self.packed[plain.args[0]] = packed
        return plain

    def _packed_of(self, graph: Rebuild, index: int, arg: Expr) -> Expr:
        return self.packed[graph.value(arg).args[0]] if index in PLACES else arg


def packed(emit: Emit, rows: Expr, layout: PackedOperand) -> Expr:
    """Return int8 [batch * tokens, heads * head_dim] in the layout."""
    o = layout
    tokens = o.steps * o.together
    split = emit(op.reshape(rows, (o.batch, o.tokens, o.heads * o.head_dim)))
    if tokens > o.tokens:
        last = emit(op.strided_slice(split, axes=[1], begin=[o.tokens - 1], end=[o.tokens]))
        split = emit(op.concat([split, *[last] * (tokens - o.tokens)], axis=1))
    parts = o.head_dim // o.dims_together
    cut = emit(op.reshape(split, (o.batch, o.steps, o.together, o.heads, parts, o.dims_together)))
    order = [0, 3, 1, 4, 2, 5] if o.operand == KEYS else [0, 3, 1, 4, 5, 2]
    return op.reshape(emit(op.permute_dims(cut, order)), o.shape)


def unpacked(emit: Emit, values: Expr, layout: PackedOperand) -> Expr:
    """Return what `packed` was given."""
    o, parts = layout, layout.head_dim // layout.dims_together
    last = (o.together, o.dims_together) if o.operand == KEYS else (o.dims_together, o.together)
    cut = emit(op.reshape(values, (o.batch, o.heads, o.steps, parts, *last)))
    order = [0, 2, 4, 1, 3, 5] if o.operand == KEYS else [0, 2, 5, 1, 3, 4]
    rows = emit(op.reshape(emit(op.permute_dims(cut, order)), (o.batch, o.steps * o.together, -1)))
    real = emit(op.strided_slice(rows, axes=[1], begin=[0], end=[o.tokens]))
    return op.reshape(real, (o.batch * o.tokens, o.heads * o.head_dim))


def _operand_attrs(attrs: Mapping[str, Any], layout: PackedOperand) -> dict[str, Any]:
    return {**attrs, KERNEL_ATTR: OPERAND_LINEAR, **asdict(layout)}


def _operand_linear(func: relax.Function, layout: PackedOperand) -> relax.Function:
    """Return the linear with its result packed."""
    body, copy = Body(), relax.utils.copy_with_new_vars(func)
    body.bindings = list(bindings(copy))
    result = body(packed(body, copy.body.body, layout))
    return _finished(body, list(copy.params), result, _operand_attrs(attributes(func), layout))


def _packed_attention(func: relax.Function, layouts: Sequence[PackedOperand]) -> relax.Function:
    """Return the attention of packed keys and values."""
    body, copy = Body(), relax.utils.copy_with_new_vars(func)
    params, plain = list(copy.params), dict[Var, Expr]()
    for place, layout in zip(PLACES, layouts, strict=True):
        old = params[place]
        params[place] = relax.Var(old.name, relax.TensorType(layout.shape, "int8"))
        plain[old] = body(unpacked(body, params[place], layout))
    body.bindings += [relax.VarBinding(b.var, substitute(b.value, plain)) for b in bindings(copy)]
    return _finished(body, params, copy.body.body, {**attributes(func), KERNEL_ATTR: PACKED_ATTENTION})


def _finished(body: Body, params: list[Var], result: Var, attrs: dict[str, Any]) -> relax.Function:
    kernel, site = (attrs.pop(name.removeprefix("tvmq.")) for name in (KERNEL, SITE))
    return body.finish(params, result, kernel, site, attrs)
