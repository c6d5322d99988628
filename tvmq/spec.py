"""The values handed from stage to stage; all frozen.

What ends up in a file is a Record (JSON round trip, unknown keys are errors). A site is one quantizable call,
named by the module path of its weight ("blocks.3.attn.qkv") or `op.ordinal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tvmq.errors import UsageError
from tvmq.record import Record

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Precision(Record):
    """Bit widths of one site; w8a8 in tables."""

    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        if not (2 <= self.weight_bits <= 8 and 2 <= self.activation_bits <= 16):
            raise ValueError(f"{self} is outside 2..8 weight bits and 2..16 activation bits")

    @classmethod
    def of(cls, bits: int | str) -> Precision:
        """Return the widths that 8, "8" or "w4a8" stand for; UsageError for what stands for none."""
        found = re.fullmatch(r"w([2-8])a([3-8])", f"w{bits}a{bits}" if len(str(bits)) == 1 else str(bits))
        if found is None:
            raise UsageError(
                f"bits={bits!r}: no widths are called that; pass 3 to 8 for weights and activations, or "
                'both as in "w4a8": weights of 2 to 8 bits, activations of 3 to 8'
            )
        weights, activations = found.groups()
        return cls(int(weights), int(activations))

    @property
    def option(self) -> int | str:
        """Return what recipes call it, whatever it was called: 8, "w4a8"."""
        return 8 if self == W8A8 else str(self)

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


W8A8 = Precision(8, 8)


@dataclass(frozen=True, slots=True)
class SitePlan(Record):
    """What becomes of one site; precision None: it stays in float32."""

    site: str
    kind: str  # "linear", "conv2d", "attention", "layer_norm", ...
    precision: Precision | None
    reason: str  # why this precision, or why float


@dataclass(frozen=True, slots=True)
class Plan(Record):
    """One decision per site of the module with this structural hash."""

    module_hash: str
    sites: tuple[SitePlan, ...]


@dataclass(frozen=True, slots=True)
class CoverageRow(Record):
    """Whether one site computes in integers, and why not if it does not."""

    site: str
    kind: str
    integer: bool
    reason: str
    macs: int  # multiply-accumulates of one call of the model


@dataclass(frozen=True, slots=True)
class Coverage(Record):
    """Every site of a model with what was done to it."""

    rows: tuple[CoverageRow, ...]

    @property
    def macs_integer_fraction(self) -> float:
        """Return the share of all multiply-accumulates done in integers, 0..1; 1 for a model without any."""
        total = sum(row.macs for row in self.rows)
        return sum(row.macs for row in self.rows if row.integer) / total if total else 1.0

    def __str__(self) -> str:
        floats = [row for row in self.rows if not row.integer]
        share = f"{100 * self.macs_integer_fraction:.4g} % of the multiplications"
        lines = [f"{len(self.rows) - len(floats)} of {len(self.rows)} sites in integers, {share}"]
        return "\n".join(lines + [f"  float: {row.site} ({row.kind}): {row.reason}" for row in floats])

    def for_samples(self, samples: int) -> Coverage:
        """Return the coverage of a call that computes so many samples."""
        return Coverage(tuple(replace(row, macs=samples * row.macs) for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        """Return the rows with the summary numbers that reports print; not the input of from_json."""
        return {
            "macs_integer_fraction": self.macs_integer_fraction,
            "sites": len(self.rows),
            "sites_integer": sum(row.integer for row in self.rows),
            **self.to_json(),
        }


@dataclass(frozen=True, slots=True)
class TensorSpec(Record):
    """Name, static shape and NumPy dtype name of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Return the size of a dense tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class OutputSpec(TensorSpec):
    """An output, and how its bits come about (tvmq.exactness)."""

    float_ops: tuple[str, ...] = ()  # inexact float operations between the integers and this output
    portable: bool = True  # the same bits on every machine: no such operation anywhere before it


@dataclass(frozen=True, slots=True)
class Scale(Record):
    """How one tensor is stored: real = scale * (code - zero_point)."""

    tensor: str  # a value's name, or a site's for its weight
    role: str  # "value", "uint8 copy" of an int16 value, "constant" operand, "weight"
    dtype: str  # "uint8", "int16"; "uint4" for codes that four bits hold, stored as uint8
    zero_point: int
    smallest: float
    largest: float  # as the smallest, unless every output channel of a weight has its own


COPY = ".uint8"  # what the id of a site's second tensor ends in, the uint8 copy of an int16 one
ENTRY = "quantize"  # the kernel of a SiteTrace that is no site: where floats become integers again


@dataclass(frozen=True, slots=True)
class SiteTrace(Record):
    """One tensor that the library's `trace` function returns: the integer output of a site, or an entry."""

    id: str
    kernel: str  # "linear", "layer_norm", "attention", "table", ..., or ENTRY
    shape: tuple[int, ...]
    dtype: str
    portable: bool = True  # as in OutputSpec


_Shaped = TypeVar("_Shaped", TensorSpec, OutputSpec, SiteTrace)


def _resized(spec: _Shaped, rows: int) -> _Shaped:
    return replace(spec, shape=(rows, *spec.shape[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """One element of the params tuple, laid out as the kernel reads it."""

    name: str
    array: Array
    layout: str  # "plain", or the packing, e.g. "[N/16, K/4, 16, 4]"
    logical_shape: tuple[int, ...]  # the shape before packing
    site: str = ""  # of a product's weight: which site's
    weight_bits: int = 0  # and how many bits of every byte before packing it uses; 0: no weight


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A compiled program: what the build stage hands over and an artifact holds.

    library is a shared object with the Relax VM functions `main` and `trace`; both take the inputs and one
    tuple of all constants. main returns a tensor or a tuple, trace a flat tuple in the order of sites.
    Where samples is more than 1, both take and return one of so many samples: the first axis of every input,
    output and site is cut into as many parts.
    """

    library: bytes = field(repr=False)
    constants: tuple[Constant, ...] = field(repr=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    sites: tuple[SiteTrace, ...]
    # The integer module without its constants as TVM's JSON; as bytes it is that text raw-deflated.
    graph: str | bytes = field(repr=False)
    samples: int = 1

    def sample_inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the functions of the library take."""
        return tuple(_resized(spec, spec.shape[0] // self.samples) for spec in self.inputs)

    def for_samples(self, samples: int) -> Built:
        """Return this program, of one call for one sample, as one of a call for so many."""
        if samples == 1:
            return self
        return replace(
            self,
            samples=samples,
            inputs=tuple(_resized(spec, samples * spec.shape[0]) for spec in self.inputs),
            outputs=tuple(_resized(spec, samples * spec.shape[0]) for spec in self.outputs),
            sites=tuple(_resized(spec, samples * spec.shape[0]) for spec in self.sites),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Description(Record):
    """Where a program came from and what it needs; kept in the artifact's manifest."""

    target: str  # name of the target profile
    profile: str  # the profile's TOML text
    triple: str  # of the code, as compilers spell it: "aarch64-linux-gnu"
    features: tuple[str, ...]  # CPU features that the code needs, as Linux spells them
    coverage: Coverage
    plan: Plan
    scales: tuple[Scale, ...] = ()
    recipe: Mapping[str, Any]  # everything that reproduces the compile: bits, ignored, requantize, seed, ...
    calibration_hash: str | None  # SHA-256 of the calibration data
