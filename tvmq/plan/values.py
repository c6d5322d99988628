"""Find the values that pass between sites: who decides their form, and what converting them costs.

A value is made in integers or floats by its writers. If any reader wants integers, it is stored as such, and
then float readers dequantize what is stored; so each value is quantized once at most, and each view of it
dequantized once at most, however many read it. A sum is in integers if anything in it is, and takes part
under its own name, as a site does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tvmq.plan.formats import ACCUMULATING
from tvmq.plan.nodes import OUTPUT, SITE_KINDS, Nodes
from tvmq.record import Record

OUTSIDE = ""  # who reads or writes floats alone: the model's inputs and outputs, operations without integers

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reading(Record):
    """A value as some read it: whole, or through a view."""

    readers: tuple[str, ...]  # sites, sums, OUTSIDE
    shape: tuple[int, ...] = ()
    to_float: float = 0.0  # ms of dequantize


@dataclass(frozen=True, slots=True)
class Value(Record):
    """A value between sites; a bias is a part of the product before it."""

    name: str
    writers: tuple[str, ...]  # a site; of a sum: sites and earlier sums; none: it is made in floats
    readings: tuple[Reading, ...]
    is_sum: bool = False
    direct: bool = False  # a product's sums, which its kernel stores as floats just as well
    shape: tuple[int, ...] = ()
    from_float: float = 0.0  # ms of quantize

    @property
    def readers(self) -> tuple[str, ...]:
        """Return all who read it, each once."""
        return tuple(dict.fromkeys(reader for reading in self.readings for reader in reading.readers))


@dataclass(frozen=True, slots=True)
class Forms:
    """What becomes of a value under a plan."""

    stored: bool  # as integers, somewhere
    quantized: bool
    dequantized: tuple[bool, ...]  # by reading


def values_of(nodes: Nodes, parameters: Shapes) -> tuple[Value, ...]:
    """Return all values that something reads, in graph order; parameters: shapes of the model's inputs."""
    writers: dict[str, tuple[str, ...]] = dict.fromkeys(nodes.parameters, ())
    found = []
    for name in (*nodes.parameters, *nodes.by_name):
        node = nodes.by_name.get(name)
        if node is not None:
            sources = dict.fromkeys(w for source in node.inputs for w in writers.get(source, ()))
            writers[name] = _written_by(name, node.kind, tuple(sources))
            follower = nodes.sole_consumer(name)
            if not node.is_float or node.kind == "view" or (follower and follower.kind == "bias"):
                continue
        shape = parameters[name] if node is None else node.shape
        readings: dict[str, tuple[tuple[int, ...], list[str]]] = {}
        for view, reader in _readers(nodes, name, name):
            of_view = shape if view == name else nodes.by_name[view].shape
            readings.setdefault(view, (of_view, []))[1].append(reader)
        is_sum = node is not None and node.kind == "add"
        made_by = tuple(sources) if is_sum else writers[name]
        read = tuple(Reading(tuple(dict.fromkeys(who)), seen) for seen, who in readings.values())
        if read:
            found.append(Value(name, made_by, read, is_sum, _is_direct(nodes, name), shape))
    return tuple(found)


def _written_by(name: str, kind: str, sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return who decides the form of what a node makes, for those that read it."""
    if kind in SITE_KINDS or kind == "add":
        return (name,)
    return sources if kind in ("bias", "view") else ()


def _readers(nodes: Nodes, name: str, view: str) -> Iterator[tuple[str, str]]:
    """Yield (view of the value, reader)."""
    for user in nodes.consumers.get(view, ()):
        kind = "" if user == OUTPUT else nodes.by_name[user].kind
        if kind == "view":
            yield from _readers(nodes, name, user)
        else:
            yield view, user if kind in SITE_KINDS or kind == "add" else OUTSIDE


def _is_direct(nodes: Nodes, name: str) -> bool:
    node = nodes.by_name.get(name)
    if node is not None and node.kind == "bias":
        node = nodes.by_name[node.inputs[0]]
    return node is not None and node.kind in ACCUMULATING


def with_sums(values: Sequence[Value], integer: Mapping[str, bool]) -> dict[str, bool]:
    """Return who is in integers, sites and the sums between them; sites that are not named are not."""
    found = dict(integer)
    for value in values:
        if value.is_sum:
            found[value.name] = any(found.get(writer, False) for writer in value.writers)
    return found


def forms_of(value: Value, integer: Mapping[str, bool]) -> Forms:
    """Return what becomes of a value; integer: of sites and sums."""
    made = any(integer.get(writer, False) for writer in value.writers)
    wanted = any(integer.get(reader, False) for reader in value.readers)
    stored = wanted or (made and not value.direct)
    floats = (not all(integer.get(reader, False) for reader in each.readers) for each in value.readings)
    return Forms(stored, wanted and not made, tuple(stored and read for read in floats))


def conversions_ms(values: Sequence[Value], integer: Mapping[str, bool]) -> float:
    """Return the time of all conversions; integer: of sites."""
    every, total = with_sums(values, integer), 0.0
    for value in values:
        forms = forms_of(value, every)
        total += value.from_float * forms.quantized
        total += sum(r.to_float for r, done in zip(value.readings, forms.dequantized, strict=True) if done)
    return total
