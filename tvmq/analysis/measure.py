"""Measure the error of each site over samples: with everything before it quantized, and of the site alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import tvm

from tvmq.analysis.lockstep import Program, Value, known_outside
from tvmq.analysis.records import BEST_DB, Closeness
from tvmq.calibrate.batches import Batch
from tvmq.formats import Quantization, QuantParams
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.plan.formats import Formats, swallowed
from tvmq.plan.nodes import CLIPS, Node, Nodes
from tvmq.quantize.scales import FLOORED
from tvmq.spec import Plan

Floats = npt.NDArray[np.float32]

# Samples of which every site is also run alone: three times the work, for numbers that settle soon.
ALONE_SAMPLES = 8


@dataclass(slots=True)
class Sums:
    """The sums that closeness is made of."""

    float_squares: float = 0.0
    error: float = 0.0
    product: float = 0.0
    squares: float = 0.0

    def add(self, wanted: torch.Tensor, found: torch.Tensor) -> None:
        """Count the values of one sample."""
        wanted, found = wanted.double(), found.double()
        if not bool(torch.isfinite(wanted).all()):  # masks
            finite = torch.isfinite(wanted)
            wanted, found = wanted[finite], found[finite]
        self.float_squares += float((wanted * wanted).sum())
        self.squares += float((found * found).sum())
        self.product += float((wanted * found).sum())
        self.error += float(((wanted - found) ** 2).sum())

    def closeness(self) -> Closeness:
        """Return what the sums say."""
        if self.error == 0:
            return Closeness(BEST_DB, 1.0)
        size = np.sqrt(self.float_squares * self.squares)
        decibel = 10 * np.log10(self.float_squares / self.error) if self.float_squares else -BEST_DB
        cosine = min(self.product / size, 1.0) if size else 0.0
        return Closeness(float(np.clip(decibel, -BEST_DB, BEST_DB)), float(cosine))


@dataclass(slots=True)
class Clipping:
    """How many values of a stored tensor its codes cannot hold, and what that costs."""

    count: int = 0
    outside: int = 0
    error: float = 0.0
    by_clipping: float = 0.0

    def add(self, values: torch.Tensor, low: float, high: float, scale: float) -> None:
        """Count the values of one sample."""
        x = values.double()
        beyond = x - x.clamp(low, high)
        outside = beyond.abs() > scale / 2
        clipped = float((beyond[outside] ** 2).sum())
        self.count += x.numel()
        self.outside += int(outside.sum())
        self.by_clipping += clipped
        self.error += clipped + scale**2 / 12 * (x.numel() - int(outside.sum()))

    @property
    def shares(self) -> tuple[float, float]:
        """Return the share of values outside, and of the squared error that they make."""
        return self.outside / max(self.count, 1), self.by_clipping / self.error if self.error else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A site with what is computed along with it."""

    node: Node
    kind: str  # as users see it
    integer: bool
    chain: frozenset[str]  # itself, its bias, its ReLU
    output: str  # the last of these
    reads: str  # the first stored value it reads, views looked through; "" if none is stored
    has_weight: bool


@dataclass(slots=True)
class Measured:
    """The sums of one site."""

    together: Sums = field(default_factory=Sums)
    alone: Sums = field(default_factory=Sums)
    weights: Sums = field(default_factory=Sums)
    inputs: Sums = field(default_factory=Sums)
    channels: Floats | None = None  # largest size of each channel that it reads, [C]


def parts_of(nodes: Nodes, plan: Plan, integer: frozenset[str], numbers: Quantization) -> tuple[Part, ...]:
    """Return the sites of a plan, in graph order."""
    fused = swallowed(nodes, integer)
    kinds = {site.site: site.kind for site in plan.sites}
    found = []
    for name, node in nodes.by_name.items():
        if name not in kinds:
            continue
        chain = [name]
        while (user := _own(nodes, chain[-1], fused)) is not None:
            chain.append(user)
        reads = _stored(nodes, node.inputs[0], numbers) if node.inputs else ""
        inside = frozenset(binding for each in chain for binding in nodes.by_name[each].bindings)
        weighted = name in numbers.weights
        found.append(Part(node, kinds[name], name in integer, inside, chain[-1], reads, weighted))
    return tuple(found)


def _own(nodes: Nodes, name: str, fused: Mapping[str, str]) -> str | None:
    """Return the bias or the ReLU that is computed along with a value."""
    user = nodes.sole_consumer(name)
    if user is None:
        return None
    return user.name if user.kind == "bias" or (user.op in CLIPS and fused.get(name) == user.name) else None


def _stored(nodes: Nodes, name: str, numbers: Quantization) -> str:
    while name not in numbers.values:
        node = nodes.by_name.get(name)
        if node is None or node.kind != "view" or not node.inputs:
            return ""
        name = node.inputs[0]
    return name


def code_range(params: QuantParams) -> tuple[float, float]:
    """Return the least and the greatest real number that codes stand for."""
    low, high = (params.scale * (code - params.zero_point) for code in (params.low, params.high))
    return low, high


class Measurement:
    """The sums of all sites of a quantized model, sample by sample."""

    def __init__(
        self, mod: tvm.IRModule, nodes: Nodes, parts: Sequence[Part], formats: Formats, numbers: Quantization
    ) -> None:
        self.floats, self.quantized = Program(mod), Program(InsertQdq(numbers)(mod))
        self.numbers, self.parts = numbers, parts
        # What GELU makes zero is stored as its floor on purpose: below it, values are as good as equal.
        self.floors = {
            name: code_range(params)[0]
            for name, params in numbers.values.items()
            if formats.values[name].unary in FLOORED
        }
        self.sites = {part.node.name: Measured() for part in self.parts}
        self.outputs: list[Sums] = []
        self.clipping = {name: Clipping() for name in (*numbers.values, *_copies(numbers))}
        self.views = frozenset(name for name, node in nodes.by_name.items() if node.kind == "view")

    def add(self, batch: Batch, *, alone: bool) -> None:
        """Measure one batch; alone: also each site alone."""
        floats, outputs = self.floats.run(batch)
        quantized, found = self.quantized.run(batch)
        self.outputs = self.outputs or [Sums() for _ in outputs]
        for sums, one, other in zip(self.outputs, outputs, found, strict=True):
            sums.add(one, other)
        for name, clipping in self.clipping.items():
            params = self._storage(name)
            value = self._floored(name, floats[name.removesuffix(COPY)])
            clipping.add(value, *code_range(params), params.scale)
        for part in self.parts:
            measured = self.sites[part.node.name]
            wanted = self._floored(part.output, floats[part.output])
            measured.together.add(wanted, self._floored(part.output, quantized[self._output(part)]))
            if part.has_weight:
                channels = _channels(floats[part.node.inputs[0]], part.node.kind)
                before = measured.channels
                measured.channels = channels if before is None else np.maximum(before, channels)
            if alone and part.integer:
                self._alone(part, measured, floats)

    def _alone(self, part: Part, measured: Measured, floats: Mapping[str, Value]) -> None:
        wanted = self._floored(part.output, floats[part.output])
        # Views are looked through, so that what a site reads is quantized where it is stored.
        own = known_outside(floats, part.chain | self.views)
        measured.alone.add(wanted, self._floored(part.output, self.quantized.value(self._output(part), own)))
        if not part.has_weight:
            return
        source = part.node.inputs[0]
        unquantized = {read: floats[source] for read in self._reads(part)}

        def by_weights(name: str) -> Value | None:
            return unquantized.get(name, own(name))

        weighted = self.quantized.value(part.output, by_weights)
        measured.weights.add(wanted, self._floored(part.output, weighted))
        stored = self.quantized.value(self._reads(part)[0], own)
        by_inputs = known_outside({**floats, source: stored}, part.chain)
        measured.inputs.add(wanted, self._floored(part.output, self.floats.value(part.output, by_inputs)))

    def _floored(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.clamp(min=self.floors[name]) if name in self.floors else value

    def _reads(self, part: Part) -> list[str]:
        """Return the variables of the qdq level that a site with a weight reads as its input."""
        call = self.quantized.values[self.quantized.variables[part.node.name]]
        return [call.args[0].name]

    def _output(self, part: Part) -> str:
        return f"{part.output}.dq" if part.output in self.numbers.values else part.output

    def _storage(self, name: str) -> QuantParams:
        copy = name.endswith(COPY) and name not in self.numbers.values
        return self.numbers.also_uint8[name.removesuffix(COPY)] if copy else self.numbers.values[name]


COPY = ".uint8"  # the second storage of a value, as InsertQdq names it


def _copies(numbers: Quantization) -> Iterator[str]:
    return (name + COPY for name in numbers.also_uint8)


def _channels(x: torch.Tensor, kind: str) -> Floats:
    """Return the largest size of each channel [C] of what a site with a weight reads."""
    axis = x.ndim - 1 if kind == "linear" else 1
    largest: Floats = x.abs().amax([i for i in range(x.ndim) if i != axis]).numpy()
    return largest


def channels_before(mod: tvm.IRModule, parts: Sequence[Part], batches: Sequence[Batch]) -> dict[str, Floats]:
    """Return the largest size of each channel that each site with a weight reads in another module, by site.

    Sites whose input the module does not have are left out.
    """
    program = Program(mod)
    found: dict[str, Floats] = {}
    for batch in batches:
        floats, _ = program.run(batch)
        for part in parts:
            source = part.node.inputs[0] if part.has_weight else ""
            if source in floats:
                channels = _channels(floats[source], part.node.kind)
                name = part.node.name
                found[name] = np.maximum(found[name], channels) if name in found else channels
    return found
