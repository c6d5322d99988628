"""Which precisions a machine has, read off the products that its profile lists; no table by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvmq.numerics import INTEGER_RANGE
from tvmq.plan.edges import NARROWED
from tvmq.plan.formats import FLOAT, WANTS
from tvmq.plan.nodes import MULTIPLYING
from tvmq.spec import W8A8, Precision
from tvmq.target import Kernel, TargetProfile

SIGNED = {"uint8": "int8", "int8": "uint8"}  # tvmq stores either as the other with 128 added
PROVED = "int32"  # what passes.integer_parameters proves for each site's own weights


@dataclass(frozen=True, slots=True)
class Signature:
    """One product of a machine: of which dtypes, summed in which."""

    activation: str
    weight: str
    accumulator: str

    @classmethod
    def of(cls, kernel: Kernel) -> Signature:
        """Return the signature of a profile's kernel."""
        return cls(kernel.activation, kernel.weight, kernel.accumulator)

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers."""
        return self.accumulator in INTEGER_RANGE

    def most_inputs(self, precision: Precision) -> int:
        """Return how many products of these bits the accumulator surely holds, whatever their values are.

        A bias and a rounding half take part of the last ones' room: the proof with a site's own numbers is
        passes.integer_parameters'.
        """
        weight = min(1 << precision.weight_bits - 1, INTEGER_RANGE["int8"][1])
        activation = (1 << precision.activation_bits) - 1
        return int(INTEGER_RANGE[self.accumulator][1]) // (weight * activation)


def signatures(profile: TargetProfile) -> tuple[Signature, ...]:
    """Return the products that a machine has, natively, in the order of its profile."""
    return tuple(Signature.of(kernel) for kernel in profile.kernels)


def takes(kind: str, precision: Precision | None, profile: TargetProfile) -> bool:
    """Whether a machine computes a node of this kind (plan.nodes) so.

    Fewer than 8 bits are products' alone; weights of any number of bits are multiplied as int8.
    """
    found = signatures(profile)
    if precision is None:
        return Signature(FLOAT, FLOAT, FLOAT) in found
    if precision != W8A8 and kind not in NARROWED:
        return False
    stored = WANTS.get(kind, "uint8")
    return any(
        each.integer and each.weight == "int8" and each.activation in (stored, SIGNED.get(stored, stored))
        for each in found
    ) or (kind not in MULTIPLYING and any(each.integer for each in found))


def holds(kind: str, inputs: int, precision: Precision, profile: TargetProfile) -> bool:
    """Whether sums of so many products fit an accumulator of the machine.

    int32 counts as enough: what its sums really reach is proved when a site is lowered, and a site that
    could leave it is refused there. A narrower one must hold the largest products that there can be.
    """
    integer = [each for each in signatures(profile) if each.integer and each.weight == "int8"]
    return kind not in MULTIPLYING or any(
        each.accumulator == PROVED or inputs <= each.most_inputs(precision) for each in integer
    )


def offered(
    kind: str, inputs: int, profile: TargetProfile, wanted: Sequence[Precision]
) -> tuple[Precision | None, ...]:
    """Return those of the wanted precisions, and float (None) first, that a node may take on a machine.

    inputs: of how many products each sum of the node is.
    """
    integer = [p for p in wanted if takes(kind, p, profile) and holds(kind, inputs, p, profile)]
    return ((None,) if takes(kind, None, profile) else ()) + tuple(integer)
