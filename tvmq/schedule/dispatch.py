"""Replace the integer functions that a profile has kernels for by calls to those kernels.

A kernel computes the very function it replaces, bit for bit; what has none is left for TVM to legalise, so
every target works and scheduled ones are fast. Weights are packed here, once, at compile time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.passes.composites import attributes
from tvmq.schedule import kernels
from tvmq.schedule.kernel import Kernel, Packing
from tvmq.schedule.kernel_table import NO_DECISIONS, KernelTable, Use
from tvmq.schedule.pack_keys_and_values import PackKeysAndValues
from tvmq.schedule.space import Decisions
from tvmq.target import TargetProfile

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """A constant as a kernel reads it; layout as in spec.Constant."""

    constant: Any
    layout: str


@dataclass(frozen=True, slots=True)
class SiteCall:
    """One call of a kernel, by the site that it computes; arguments as the kernel reads them."""

    site: str
    kernel: Kernel
    arguments: tuple[Any, ...]


@tvm.ir.transform.module_pass(opt_level=0, name="DispatchKernels")
class DispatchKernels:
    """The pass.

    threads: how many will run the kernels, for the choice of tiles. decisions: as for KernelTable.
    """

    def __init__(
        self, profile: TargetProfile, threads: int = 1, decisions: Mapping[str, Decisions] = NO_DECISIONS
    ) -> None:
        self.profile = profile
        self.threads = threads
        self.decisions = decisions
        self.packed: dict[Any, Packed] = {}  # the constants it replaced
        self.uses: Mapping[str, Use] = {}  # by semantics, the kernels of the last module
        self.calls: list[SiteCall] = []  # of the last module, in its order
        self.left: dict[str, None] = {}  # its sites in integers that no kernel computes

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with kernel calls; functions that nobody calls any more are gone."""
        self.calls, self.left = [], {}
        dispatcher = _Dispatcher(PackKeysAndValues(self.profile)(mod), self)
        self.uses = dispatcher.table.uses
        return dispatcher.run()


class _Dispatcher:
    def __init__(self, mod: tvm.IRModule, owner: DispatchKernels) -> None:
        self.mod = mod
        self.owner = owner
        self.builder = relax.BlockBuilder(mod)
        self.table = KernelTable(self.builder, owner.decisions)

    def run(self) -> tvm.IRModule:
        changed = {
            gvar: self._rewrite(func)
            for gvar, func in self.mod.functions.items()
            if isinstance(func, relax.Function) and not attributes(func)
        }
        result = self.builder.get()
        for gvar, func in changed.items():
            result.update_func(gvar, func)
        used = {gvar for func in changed.values() for gvar in called_functions(func)}
        dead = [
            gvar
            for gvar, func in result.functions.items()
            if isinstance(func, relax.Function) and attributes(func) and gvar not in used
        ]
        return tvm.IRModule(
            {gvar: func for gvar, func in result.functions.items() if gvar not in dead}, attrs=result.attrs
        )

    def _rewrite(self, func: relax.Function) -> relax.Function:
        blocks = []
        for block in func.body.blocks:
            bindings = [self._binding(b) for b in block.bindings]
            blocks.append(
                relax.DataflowBlock(bindings)
                if isinstance(block, relax.DataflowBlock)
                else relax.BindingBlock(bindings)
            )
        body = relax.SeqExpr(blocks, func.body.body)
        return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)

    def _binding(self, binding: Any) -> Any:
        call = binding.value
        if not (isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar)):
            return binding
        attrs = attributes(self.mod[call.op])
        if not attrs:
            return binding
        shapes = [tuple(int(d) for d in arg.ty.shape) for arg in call.args]
        kernel = kernels.find(attrs, shapes, self.owner.profile, self.owner.threads)
        packings = kernel.packing if kernel else ()
        args = [self._pack(a, p) for a, p in zip(call.args, packings, strict=kernel is not None)]
        if kernel is None or any(arg is None for arg in args):
            self.owner.left[str(attrs["site"])] = None
            return binding
        self.owner.calls.append(SiteCall(str(attrs["site"]), kernel, tuple(args)))
        out = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else call.ty
        replaced = relax.op.call_tir(self.table.call(kernel, args), relax.Tuple(args), out)
        return relax.VarBinding(binding.var, self.builder.normalize(replaced))

    def _pack(self, arg: Any, packing: Packing | None) -> Any:
        """Return the argument in the kernel's layout; None where it is not constant, or not exact there."""
        if packing is None:
            return arg
        if not isinstance(arg, tvm.ir.GenericConst):
            return None
        packed = self.owner.packed
        if arg not in packed:
            values = packing.pack(arg.value.numpy())
            if not packing.fits(values):
                return None
            packed[arg] = Packed(relax.const(values), packing.layout)
        return packed[arg].constant


def called_functions(func: relax.Function) -> Iterator[Any]:
    """Yield the functions that func calls directly."""
    for block in func.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                yield call.op
