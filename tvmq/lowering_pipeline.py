"""The lowering as one pass, for programs that call tvm.compile themselves: what plugin.py registers."""

from __future__ import annotations

from typing import Any

import tvm

from tvmq.build import lowering_passes
from tvmq.errors import UsageError
from tvmq.passes.lower_integer import LowerInteger
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.target import NATIVE, TargetProfile, load_profile


def lowering_pipeline(*, target: Any = None, threads: int = 1) -> Any:
    """Return tvmq's lowering as one TVM pass, for people who call tvm.compile themselves.

    It takes a module at level qdq (quantize and dequantize with constant scales) or at the integer level, and
    leaves it ready for the Relax VM: `tvm.compile(mod, target, relax_pipeline="tvmq")`.

    target: as for compile; None: the one of tvm.compile. threads: as for compile.
    """
    return LoweringPipeline(None if target is None else load_profile(target), threads)


@tvm.transform.module_pass(opt_level=0, name="tvmq")
class LoweringPipeline:
    """What lowering_pipeline returns."""

    def __init__(self, profile: TargetProfile | None, threads: int) -> None:
        self.profile = profile
        self.threads = threads

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod ready for the Relax VM."""
        profile = self._profile()
        with profile.tvm() as target:
            passes = [
                LowerInteger(),
                DispatchKernels(profile, self.threads),
                DispatchFloats(profile, self.threads),
                *lowering_passes(target),
            ]
            return tvm.transform.Sequential(passes)(mod)

    def _profile(self) -> TargetProfile:
        current = tvm.target.Target.current(allow_none=True)
        if current is None:
            return self.profile or load_profile(NATIVE)
        given = load_profile(current)
        lacking = self.profile.missing(given.features) if self.profile else ()
        if self.profile and lacking:  # LLVM would end the process
            raise UsageError(
                f"target: tvm.compile's lacks {', '.join(lacking)}, which {self.profile.name!r} needs; "
                "give both the same target, or relax.get_pipeline('tvmq') none"
            )
        return self.profile or given
