"""Replace float linears with constant weights by calls to the float kernel.

A plan leaves layers in float: what `ignored` names, heads that want every bit, sites without an integer form.
TVM's own float product runs far under the machine's speed, so such a layer would cost more than all integer
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
from tvmq.schedule.dispatch import Packed
from tvmq.schedule.float_linear import (
    float_linear_prim_func,
    float_space,
    pack_float_weight,
    schedule_float_linear,
)
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import NO_DECISIONS, KernelTable, Use
from tvmq.schedule.linear_spec import LANES, pad_channels
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile

FLOAT = "float32"


@tvm.ir.transform.module_pass(opt_level=0, name="DispatchFloatLinears")
class DispatchFloatLinears:
    """The pass. threads and decisions: as for DispatchKernels.

    Before: lv = matmul(x[1, 197, 384], W); lv1 = add(lv, b); lv2 = relu(lv1)
    After:  lv = reshape(x, [197, 384]); lv1 = call_tir(float_linear, lv, W packed, b padded)
            lv2 = reshape(lv1, [1, 197, 1152])
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
    def __init__(self, mod: tvm.IRModule, owner: DispatchFloatLinears) -> None:
        self.mod = mod
        self.owner = owner
        self.builder = relax.BlockBuilder(mod)  # keeps the kernels' names apart from the module's
        self.table = KernelTable(self.builder, owner.decisions)
        self.functions: set[Any] = set()

    def run(self) -> tvm.IRModule:
        # A rule sees what comes before an operation, not after: so the longest chain goes first.
        mod = rebuild(rebuild(rebuild(self.mod, self._relu), self._bias), self._product)
        if not self.functions:
            return mod
        result = mod.clone()
        scheduled = self.builder.get()
        for gvar in self.functions:
            result.update_func(gvar, scheduled[gvar])
        return result

    def _relu(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        if op_name(value) != "nn.relu" or graph.uses(value.args[0]) != 1:
            return None
        source = graph.value(value.args[0])
        biased = self._biased(graph, source, relu=True)
        return biased if biased is not None else self._linear(graph, source, None, relu=True)

    def _bias(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        return self._biased(graph, value, relu=False)

    def _product(self, graph: Rebuild, var: Var, value: Expr) -> Expr | None:
        return self._linear(graph, value, None, relu=False)

    def _biased(self, graph: Rebuild, value: Expr, *, relu: bool) -> Expr | None:
        if op_name(value) != "add" or graph.uses(value.args[0]) != 1:
            return None
        product, bias = value.args
        return self._linear(graph, graph.value(product), bias, relu=relu)

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
        args = [flat, self._pack(weight, "float16", pack_float_weight)]
        if bias is not None:
            args.append(self._pack(bias, "channels16", _pad))
        kernel = self._kernel(rows, inputs, outputs, bias is not None, relu)
        function = self.table.call(kernel, args)
        self.functions.add(function)
        result = op.call_tir(function, relax.Tuple(args), relax.TensorType((rows, outputs), FLOAT))
        return result if len(shape) == 2 else op.reshape(graph.emit(result), (*shape[:-1], outputs))

    def _pack(self, constant: Any, layout: str, pack: Any) -> Any:
        packed = self.owner.packed
        if constant not in packed:
            packed[constant] = Packed(relax.const(pack(constant.value.numpy())), layout)
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
