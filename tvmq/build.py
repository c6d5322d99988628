"""Compile an integer module to a shared object and the constants it takes.

    integer module -> trace added -> kernels dispatched -> constants lifted -> TVM lowering -> library

The library holds two Relax VM functions over the same kernels: main, and trace, which returns every site's
integer output, so that an artifact can be checked site by site on the machine it runs on. For GPUs there is a
third, graph: main with its kernels recorded (tvmq.schedule.cuda.graph).
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmq.errors import TvmqWarning
from tvmq.exactness import Analysis, analyse
from tvmq.linker import Linker, require_linker
from tvmq.passes.clip_takes import ClipTakes
from tvmq.passes.composites import attributes
from tvmq.passes.rebuild import bindings, substitute
from tvmq.progress import Progress, silent, step
from tvmq.schedule.cuda.graph import AddCudaGraph
from tvmq.schedule.cuda.toolkit import compiling
from tvmq.schedule.dispatch import DispatchKernels, Packed
from tvmq.schedule.elementwise import ScheduleLeftovers
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.schedule.kernel_table import NO_DECISIONS
from tvmq.schedule.packing import unpack
from tvmq.schedule.space import Decisions
from tvmq.schedule.unaligned_inputs import UnalignedInputs
from tvmq.spec import COPY, ENTRY, Built, Constant, OutputSpec, SiteTrace, TensorSpec
from tvmq.target import TargetProfile

PLAIN = "plain"
NAMED = 5  # sites that a warning lists


def build(
    mod: tvm.IRModule,
    profile: TargetProfile,
    *,
    threads: int = 1,
    decisions: Mapping[str, Decisions] = NO_DECISIONS,
    progress: Progress = silent,
) -> Built:
    """Return the compiled program of an integer-level module with constants in the graph.

    decisions: by kernel, what tuning found (tvmq.tune); the others are built by their default.
    """
    linker = require_linker(str(profile.tvm_target["mtriple"]))
    progress("schedule", 0, 1)
    exactness = analyse(mod)
    sites = traced_values(mod, exactness)
    traced = with_trace(mod, [var for var, _ in sites])
    constants = constants_of(traced["main"])
    dispatch = (
        DispatchKernels(profile, threads, decisions),
        DispatchFloats(profile, threads, decisions),
    )
    lifted, packed = _scheduled(traced, constants, dispatch)
    if profile.capability is not None:
        warn_of_left(profile.name, list(dispatch[0].left))
    graph = lift_constants(mod, constants)
    progress("schedule", 1, 1)
    with step(progress, "compile"):
        executable = _executable(lifted, profile)
    with step(progress, linker.stage):
        library = _linked(executable, linker)
    main = mod["main"]
    weights = weights_of(mod)
    kept = [
        (p.constant.value.numpy(), p.layout, _shape(c.ty), *weights.get(c, ()))
        for c, p in zip(constants, packed, strict=True)
    ]
    return Built(
        library=library,
        constants=tuple(Constant(f"c{i}", *parts) for i, parts in enumerate(kept)),
        inputs=tuple(TensorSpec(p.name, _shape(p.ty), str(p.ty.dtype)) for p in main.params),
        outputs=_outputs(main, exactness),
        sites=tuple(site for _, site in sites),
        graph=tvm.ir.save_json(graph),
    )


def warn_of_left(name: str, sites: Sequence[str]) -> None:
    """Say which sites run slowly on a GPU."""
    if sites:
        listed = ", ".join(sites[:NAMED]) + (f" and {len(sites) - NAMED} more" if len(sites) > NAMED else "")
        warnings.warn(
            TvmqWarning(
                f"{name}: tvmq has no kernel of a GPU for {listed}; TVM's portable code computes each number "
                f"of these with one thread, bit for bit the same, but slowly"
            ),
            stacklevel=3,
        )


def _scheduled(
    mod: tvm.IRModule, constants: Sequence[Any], dispatch: tuple[DispatchKernels, DispatchFloats]
) -> tuple[tvm.IRModule, list[Packed]]:
    """Return mod with kernels, its constants lifted, and these in the layouts that the kernels read."""
    scheduled = tvm.transform.Sequential(list(dispatch))(mod)
    by_kernel = dispatch[0].packed | dispatch[1].packed
    packed = [by_kernel.get(c, Packed(c, PLAIN)) for c in constants]
    return lift_constants(scheduled, [p.constant for p in packed]), packed


def lowering_passes(target: Any, *, graph: bool = False) -> list[Any]:
    """Return the passes from kernel calls and plain integer ops to the Relax VM.

    graph: for a GPU, add a function that launches all kernels at once. The last parameter of main is then
    the tuple of its constants.
    """
    transform = relax.transform
    return [
        *loop_passes(target),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        *([AddCudaGraph()] if graph else []),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def loop_passes(target: Any) -> list[Any]:
    """Return the passes after which every call that computes is a call_tir of a scheduled PrimFunc."""
    transform = relax.transform
    return [
        ClipTakes(),  # inlining would leave it no dataflow blocks to work on
        transform.InlinePrivateFunctions(),
        # Inlining cuts main into several blocks, and FuseOps loses what one of them reads from another.
        transform.ToNonDataflow(),
        transform.ConvertToDataflow(1),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        ScheduleLeftovers(target),
        transform.RewriteDataflowReshape(),
        *([UnalignedInputs()] if target.kind.name == "llvm" else []),  # a GPU's are copies, which are aligned
    ]


def _executable(mod: tvm.IRModule, profile: TargetProfile) -> Any:
    target = profile.tvm()
    gpu = profile.capability is not None
    device = compiling(str(target.attrs["arch"])) if gpu else contextlib.nullcontext()
    with tvm.transform.PassContext(opt_level=3), device, target:
        lowered = tvm.transform.Sequential(lowering_passes(target, graph=gpu))(mod)
        return tvm.compile(lowered, target=target, relax_pipeline=None)


def _linked(executable: Any, linker: Linker) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        executable.export_library(str(path), fcompile=linker)
        return path.read_bytes()


def traced_values(mod: tvm.IRModule, exactness: Analysis) -> list[tuple[Any, SiteTrace]]:
    """Return what `trace` returns, in graph order: every site's output, and the entries (tvmq.exactness)."""
    entries = set(exactness.entries)
    pairs: dict[Any, dict[str, Any]] = {}  # what returns a value and its uint8 copy
    found = []
    for binding in bindings(mod["main"]):
        var, call = binding.var, binding.value
        attrs: dict[str, Any] = {}
        if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
            attrs = attributes(mod[call.op])
        elif isinstance(call, relax.TupleGetItem) and call.tuple_value in pairs:
            attrs = pairs[call.tuple_value]
            attrs = attrs | {"site": attrs["site"] + COPY} if call.index else attrs
        if attrs and isinstance(var.ty, relax.TupleType):
            pairs[var] = attrs
        elif attrs or var in entries:
            name, kernel = (attrs["site"], attrs["kernel"]) if attrs else (var.name, ENTRY)
            portable = exactness.of(var).portable
            found.append((var, SiteTrace(name, kernel, _shape(var.ty), str(var.ty.dtype), portable)))
    return found


def with_trace(mod: tvm.IRModule, values: Sequence[Any]) -> tvm.IRModule:
    """Return mod with a second function `trace` that returns the tuple of these values of main."""
    main = mod["main"]
    copied = relax.utils.copy_with_new_vars(main)
    copies = list(bindings(copied))
    renamed = {old.var: new.var for old, new in zip(bindings(main), copies, strict=True)}
    outputs = []
    for var in values:
        out = relax.Var(var.name, var.ty)
        copies.append(relax.VarBinding(out, renamed[var]))
        outputs.append(out)
    body = relax.SeqExpr([relax.DataflowBlock(copies)], relax.Tuple(outputs))
    func = relax.Function(copied.params, body, body.body.ty, is_pure=True)
    result = mod.clone()
    result["trace"] = func.with_attr("global_symbol", "trace")
    return relax.transform.DeadCodeElimination(["main", "trace"])(result)


def constants_of(func: relax.Function) -> list[Any]:
    """Return the tensor constants of a function in order of first use, scalars left out."""
    found: dict[Any, None] = {}

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.GenericConst) and len(expr.ty.shape) > 0:
            found.setdefault(expr)
        elif isinstance(expr, relax.Tuple):
            for field in expr.fields:
                visit(field)
        elif isinstance(expr, relax.Call):
            for arg in expr.args:
                visit(arg)

    for binding in bindings(func):
        visit(binding.value)
    return list(found)


def weights_of(mod: tvm.IRModule) -> dict[Any, tuple[str, int]]:
    """Return the weight constants of main's products with the first site that reads each, and its bits."""
    found: dict[Any, tuple[str, int]] = {}
    for binding in bindings(mod["main"]):
        call = binding.value
        if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
            attrs = attributes(mod[call.op])
            if "weight_bits" in attrs:
                found.setdefault(call.args[1], (attrs["site"], attrs["weight_bits"]))
    return found


def lift_constants(mod: tvm.IRModule, constants: Sequence[Any]) -> tvm.IRModule:
    """Return mod with the constants of its public functions taken from a last parameter, one tuple."""
    result = mod.clone()
    for gvar, func in mod.functions.items():
        if isinstance(func, relax.Function) and not attributes(func):
            result.update_func(gvar, _lift(func, constants))
    return result


def _lift(func: relax.Function, constants: Sequence[Any]) -> relax.Function:
    index = {constant: i for i, constant in enumerate(constants)}
    params = relax.Var("params", relax.TupleType([c.ty for c in constants]))
    builder = relax.BlockBuilder()
    taken: dict[int, Any] = {}

    out: list[Any] = []

    def lifted(expr: Any) -> Any:
        if isinstance(expr, tvm.ir.GenericConst) and expr in index:
            i = index[expr]
            if i not in taken:
                item = builder.normalize(relax.TupleGetItem(params, i))
                taken[i] = relax.DataflowVar(f"c{i}", item.ty)
                out.append(relax.VarBinding(taken[i], item))
            return taken[i]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([lifted(f) for f in expr.fields])
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [lifted(a) for a in expr.args], expr.attrs, expr.ty_args)
        return expr

    for binding in bindings(func):
        value = builder.normalize(lifted(binding.value))
        out.append(relax.VarBinding(binding.var, value))
    body = relax.SeqExpr([relax.DataflowBlock(out)], func.body.body)
    return relax.Function([*func.params, params], body, func.ret_ty, func.is_pure, func.attrs)


def integer_module(graph: str, constants: Sequence[Constant]) -> tvm.IRModule:
    """Return the integer module with its constants, as it was before the kernels' packing."""
    mod = tvm.ir.load_json(graph)
    main = mod["main"]
    values = [relax.const(unpack(np.asarray(c.array), c.layout, c.logical_shape)) for c in constants]
    *inputs, params = main.params
    items: dict[Any, Any] = {}
    builder = relax.BlockBuilder(mod)
    kept = []
    for binding in bindings(main):
        value = binding.value
        if isinstance(value, relax.TupleGetItem) and value.tuple_value == params:
            items[binding.var] = values[value.index]
        else:
            kept.append(relax.VarBinding(binding.var, builder.normalize(substitute(value, items))))
    body = relax.SeqExpr([relax.DataflowBlock(kept)], main.body.body)
    func = relax.Function(inputs, body, main.ret_ty, main.is_pure, main.attrs)
    mod.update_func(mod.get_global_var("main"), func)
    return mod


def _outputs(main: relax.Function, exactness: Analysis) -> tuple[OutputSpec, ...]:
    result = main.body.body
    fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    types = list(result.ty.fields) if isinstance(result.ty, relax.TupleType) else [result.ty]
    if len(fields) != len(types):  # a variable that is a tuple
        fields = [result] * len(types)
    specs = []
    for i, (field, ty) in enumerate(zip(fields, types, strict=True)):
        name = f"output{i}" if len(types) > 1 else "output"
        exact = exactness.of(field)
        specs.append(OutputSpec(name, _shape(ty), str(ty.dtype), exact.float_ops, exact.portable))
    return tuple(specs)


def _shape(ty: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in ty.shape)
