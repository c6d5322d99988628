"""The kernels that a module calls: one function for each, and how it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax

from tvmq.schedule.elementwise import SCHEDULED
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.space import Decisions

OPAQUE = 8  # TVM's OpPatternKind: never fused with its neighbours
NO_DECISIONS: Mapping[str, Decisions] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Use:
    """A kernel of a module, and how many calls of it there are."""

    kernel: Kernel
    calls: int
    arguments: tuple[npt.NDArray[Any] | None, ...]  # the first call's constants, packed; None: not constant


class KernelTable:
    """Adds each kernel to the module of builder once, by what `decisions` holds for it, else by default.

    decisions: Kernel.semantics -> decisions; those of other kernels, or outside the kernel's space, are
    ignored: they cannot change a result.
    """

    def __init__(self, builder: relax.BlockBuilder, decisions: Mapping[str, Decisions]) -> None:
        self.uses: dict[str, Use] = {}
        self._builder = builder
        self._decisions = decisions
        self._functions: dict[Any, Any] = {}  # Kernel.key -> GlobalVar
        self._names: Counter[str] = Counter()

    def call(self, kernel: Kernel, arguments: Sequence[Any]) -> Any:
        """Return the GlobalVar of kernel for a call with these arguments."""
        name = kernel.semantics
        if name in self.uses:
            self.uses[name] = replace(self.uses[name], calls=self.uses[name].calls + 1)
        else:
            constants = (a.value.numpy() if isinstance(a, tvm.ir.GenericConst) else None for a in arguments)
            self.uses[name] = Use(kernel, 1, tuple(constants))
        if kernel.key not in self._functions:
            found = self._decisions.get(name)
            func = kernel.function(found if found in kernel.space else None)
            func = private(func).with_attr("op_pattern", OPAQUE).with_attr(SCHEDULED, True)
            self._functions[kernel.key] = self._builder.add_func(func, self._free(kernel.name))
        return self._functions[kernel.key]

    def _free(self, name: str) -> str:
        """Return a name that no function here has; TVM would put a digit right behind those of a shape."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


def private(func: Any) -> Any:
    """Return a PrimFunc without the symbol it was built under, so that a module gives it one of its own."""
    return func.without_attr("global_symbol") if "global_symbol" in func.attrs else func
