"""What comparing a program with its reference found: equal bits where bits are decided, else how close."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmq.errors import VerificationError
from tvmq.record import Record
from tvmq.spec import ENTRY, Array, OutputSpec, SiteTrace

# What two correct computations of a chain of float operations may differ by, of the largest value.
FLOAT_TOLERANCE = 1e-4
CODE_BYTES = 2  # of the widest quantized value


@dataclass(frozen=True, slots=True)
class Difference(Record):
    """A tensor that float operations make inexact: compared with a tolerance, or not at all."""

    name: str
    float_ops: tuple[str, ...]  # before it, since the last integers; () where they lie further back
    largest: float | None  # difference, in real units, or in codes for integers; None: unknown
    allowed: float


@dataclass(frozen=True, slots=True)
class Verification(Record):
    """What `CompiledModel.verify` found."""

    against: str  # "checksums" of the artifact, or the "reference"
    sites: int  # compared bit for bit
    outputs: int  # compared bit for bit
    mismatches: tuple[str, ...]  # sites and "output 0" that differ, or differ too much, in order of execution
    inexact: tuple[Difference, ...] = ()  # everything else

    @property
    def ok(self) -> bool:
        """Tell whether all that must be was equal bit for bit, and the rest within its tolerance."""
        return not self.mismatches

    def require(self) -> None:
        """Raise VerificationError that names the first site that differs."""
        if self.mismatches:
            raise VerificationError(
                f"{self.mismatches[0]}: differs from the {self.against}, the first of {len(self.mismatches)} "
                f"out of {self.sites + self.outputs} tensors; compile the model again "
                f"and report this if it stays"
            )


class Verdict:
    """Collects what was compared."""

    def __init__(self, against: str) -> None:
        self.against = against
        self.exact = {"site": 0, "output": 0}
        self.mismatches: list[str] = []
        self.inexact: list[Difference] = []

    def checksum(self, name: str, spec: SiteTrace | OutputSpec, equal: bool) -> None:
        """Note a comparison of checksums, which only portable values must pass."""
        if spec.portable or (equal and not _float_ops(spec)):
            self._exact(name, spec, equal)
        else:
            difference = 0.0 if equal else None
            self.inexact.append(Difference(name, _float_ops(spec), difference, FLOAT_TOLERANCE))

    def values(self, name: str, spec: SiteTrace | OutputSpec, found: Array, wanted: Array) -> None:
        """Note a comparison of two tensors."""
        is_entry = isinstance(spec, SiteTrace) and spec.kernel == ENTRY
        if not is_entry and not _float_ops(spec):
            self._exact(name, spec, same_bits(found, wanted))
            return
        largest = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
        if not np.issubdtype(found.dtype, np.floating) and found.itemsize > CODE_BYTES:
            allowed = 0.0  # an index or a count: one beside it is another
        elif is_entry:
            allowed = max(1.0, FLOAT_TOLERANCE * 2 ** (8 * found.itemsize))
        else:
            allowed = FLOAT_TOLERANCE * float(np.abs(wanted).max(initial=0.0))
        self.inexact.append(Difference(name, _float_ops(spec), largest, allowed))
        if not largest <= allowed:  # nor NaN
            self.mismatches.append(name)

    def result(self) -> Verification:
        """Return the record."""
        return Verification(
            self.against,
            self.exact["site"],
            self.exact["output"],
            tuple(self.mismatches),
            tuple(self.inexact),
        )

    def _exact(self, name: str, spec: SiteTrace | OutputSpec, equal: bool) -> None:
        self.exact["output" if isinstance(spec, OutputSpec) else "site"] += 1
        if not equal:
            self.mismatches.append(name)


def _float_ops(spec: SiteTrace | OutputSpec) -> tuple[str, ...]:
    return spec.float_ops if isinstance(spec, OutputSpec) else ()


def same_bits(a: Array, b: Array) -> bool:
    """Tell whether two tensors have one dtype, one shape and the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
