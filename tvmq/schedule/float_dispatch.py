"""Replace float linears and convolutions with constant weights by calls to the float kernels.

A plan leaves layers in float: what `ignored` names, heads that want every bit, sites without an integer form.
TVM's own float products run far under the machine's speed, so such a layer would cost more than all integer
ones together. What is replaced equals the product it replaces to within float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.passes.constants import array_of
from tvmq.passes.rebuild import Expr, Rebuild, Var, dtype_of, op_name, rebuild, shape_of
from tvmq.passes.sink_permutes import SinkPermutes
from tvmq.schedule.dispatch import Packed
from tvmq.schedule.float_conv_dispatch import (
    NO_LIMITS,
    Limits,
    emit_float_conv,
    float_conv_kernel,
    float_conv_spec,
    limits_of,
)
from tvmq.schedule.float_linear import (
    float_linear_prim_func,
    float_space,
    pack_float_weight,
    schedule_float_linear,
)
from tvmq.schedule.kernel import Kernel, Packing
from tvmq.schedule.kernel_table import NO_DECISIONS, KernelTable, Use
from tvmq.schedule.linear_spec import LANES, pad_channels
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile

FLOAT = "float32"
RELU: Limits = (0.0, None)


@tvm.ir.transform.module_pass(opt_level=0, name="DispatchFloats")
class DispatchFloats:
    """The pass. threads and decisions: as for DispatchKernels.

    Before: lv = matmul(x[1, 197, 384], W); lv1 = add(lv, b); lv2 = relu(lv1)
    After:  lv = reshape(x, [197, 384]); lv1 = call_tir(float_linear, lv, W packed, b padded)
            lv2 = reshape(lv1, [1, 197, 1152])

    Kernels of convolutions work on NHWC, and so does what stands between kernels, see SinkPermutes: in a
    model of integers that is the gates of its blocks, if they are float.
    """

    def __init__(
        self, profile: TargetProfile, threads: int = 1, decisions: Mapping[str, Decisions] = NO_DECISIONS
    ) -> None:
        self.profile = profile
        self.threads = threads
        self.decisions = decisions
        self.packed: dict[Any, Packed] = {}  # the constants it replaced
        self.uses: Mapping[str, Use] = {}  # as in DispatchKernels

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with kernel calls; other targets than CPUs are left alone."""
        if self.profile.tvm().kind.name != "llvm":
            return mod
        dispatcher = _Dispatcher(mod, self)
        self.uses = dispatcher.table.uses
        return dispatcher.run()


class _Dispatcher:
    def __init__(self, mod: tvm.IRModule, owner: DispatchFloats) -> None:
        self.mod = mod
        self.owner = owner
        self.builder = relax.BlockBuilder(mod)  # keeps the kernels' names apart from the module's
        self.table = KernelTable(self.builder, owner.decisions)
        self.functions: set[Any] = set()

    def run(self) -> tvm.IRModule:
        # A rule sees what comes before an operation, not after: so the longest chain goes first.
        mod = rebuild(rebuild(rebuild(self.mod, self._limited), self._bias), self._product)
        sink: Any = SinkPermutes()  # TVM makes it callable
        mod = sink(mod)
        if not self.functions:
            return mod
        result = mod.clone()
        scheduled = self.builder.get()
        for gvar in self.functions:
            result.update_func(gvar, scheduled[gvar])
        return result

    def _limited(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        limits = limits_of(value)
        if limits is None or graph.uses(value.args[0]) != 1:
            return None
        source = graph.value(value.args[0])
        biased = self._biased(graph, var, source, limits)
        return biased if biased is not None else self._layer(graph, var, source, None, limits)

    def _bias(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        return self._biased(graph, var, value, NO_LIMITS)

    def _product(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        return self._layer(graph, var, value, None, NO_LIMITS)

    def _biased(self, graph: Rebuild, var: Var, value: Expr, limits: Limits) -> Expr | None:
        if op_name(value) != "add" or graph.uses(value.args[0]) != 1:
            return None
        product, bias = value.args
        return self._layer(graph, var, graph.value(product), bias, limits)

    def _layer(self, graph: Rebuild, var: Var, call: Expr, bias: Expr | None, limits: Limits) -> Expr | None:
        if limits in (NO_LIMITS, RELU):
            linear = self._linear(graph, call, bias, relu=limits == RELU)
            if linear is not None:
                return linear
        return self._conv(graph, var, call, bias, limits)

    def _conv(self, graph: Rebuild, var: Var, call: Expr, bias: Expr | None, limits: Limits) -> Expr | None:
        spec = float_conv_spec(call, bias, limits)
        kernel = None if spec is None else float_conv_kernel(spec, self.owner.profile, self.owner.threads)
        if spec is None or kernel is None:
            return None
        x, weight = call.args
        wanted = [(c, p) for c, p in zip((weight, bias), kernel.packing[1:], strict=False) if p]
        if any(c in self.owner.packed and self.owner.packed[c].layout != p.layout for c, p in wanted):
            return None  # another kernel has it otherwise
        constants = [self._pack(c, p) for c, p in wanted]

        def called(rows: Expr, result: Expr) -> Expr:
            args = [rows, *constants]
            function = self.table.call(kernel, args)
            self.functions.add(function)
            return op.call_tir(function, relax.Tuple(args), result)

        return emit_float_conv(graph, str(var.name), x, spec, called)

    def _linear(self, graph: Rebuild, call: Expr, bias: Expr | None, *, relu: bool) -> Expr | None:
        if op_name(call) != "matmul" or dtype_of(call) != FLOAT or dtype_of(call.args[0]) != FLOAT:
            return None
        x, weight = call.args
        shape, sizes = shape_of(x), shape_of(weight)
        if array_of(weight) is None or shape is None or sizes is None or len(sizes) != 2 or len(shape) < 2:
            return None
        inputs, outputs = sizes
        if bias is not None and (array_of(bias) is None or shape_of(bias) != (outputs,)):
            return None
        rows = math.prod(shape[:-1])
        flat = x if len(shape) == 2 else graph.emit(op.reshape(x, (rows, inputs)))
        args = [flat, self._pack(weight, Packing("float16", pack_float_weight))]
        if bias is not None:
            args.append(self._pack(bias, Packing("channels16", _pad)))
        kernel = self._kernel(rows, inputs, outputs, bias is not None, relu)
        function = self.table.call(kernel, args)
        self.functions.add(function)
        result = op.call_tir(function, relax.Tuple(args), relax.TensorType((rows, outputs), FLOAT))
        return result if len(shape) == 2 else op.reshape(graph.emit(result), (*shape[:-1], outputs))

    def _pack(self, constant: Any, packing: Packing) -> Any:
        packed = self.owner.packed
        if constant not in packed:
            packed[constant] = Packed(relax.const(packing.pack(constant.value.numpy())), packing.layout)
        return packed[constant].constant

    def _kernel(self, rows: int, inputs: int, outputs: int, bias: bool, relu: bool) -> Kernel:
        def build(**decisions: Any) -> tvm.tirx.PrimFunc:
            func = float_linear_prim_func(rows, inputs, outputs, bias=bias, relu=relu)
            return schedule_float_linear(func, Decision(**decisions))

        profile, threads = self.owner.profile, self.owner.threads
        space = float_space(rows, inputs, outputs, threads, avx512="avx512f" in profile.features)
        key = ("float_linear", rows, inputs, outputs, bias, relu, profile.name)
        return Kernel(key, f"float_linear_{rows}x{inputs}x{outputs}", (None,) * (2 + bias), build, space)


def _pad(values: Any) -> Any:
    return pad_channels(np.asarray(values), -(-len(values) // LANES) * LANES)
