"""A kernel for one call: what it computes, how its constants lie, what may be decided about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from tvm import tirx

from tvmq.schedule.space import Decisions, Space

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
EMPTY = Space()


@dataclass(frozen=True, slots=True)
class Packing:
    """How a constant is laid out for a kernel; the layout's name finds the way back."""

    layout: str
    pack: Callable[[Array], Array]
    fits: Callable[[Array], bool] = lambda _packed: True  # whether the kernel is exact with what is packed


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for one call. Calls with equal keys share it."""

    key: Any  # what it computes, and all else that its code depends on; its repr names it in a database
    name: str
    packing: tuple[Packing | None, ...]  # per argument; None: as it is
    build: Callable[..., tirx.PrimFunc]  # called with the decisions of a point of space
    space: Space = EMPTY
    tuned_as: Any = None  # what of key decides the speed; kernels that share it are tuned once. None: all

    @property
    def semantics(self) -> str:
        """Return what tuning knows this kernel by: the same text in every process."""
        return repr(self.key if self.tuned_as is None else self.tuned_as)

    def function(self, decisions: Decisions | None = None) -> tirx.PrimFunc:
        """Return the PrimFunc, by the default decisions if none are given."""
        return self.build(**(self.space.default if decisions is None else decisions))
