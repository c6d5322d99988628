"""Find how each float value of a planned module is stored: uint8, int8, int16, or not at all.

Consumers decide. A linear or a table wants uint8, attention int8, a layer norm and a residual add the int16
trunk; views pass the wish on. Values joined by an add or a concat form a region and share one scale.
A value that its only consumer swallows (bias add, residual add, relu after a linear) is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tvmq.formats import ValueFormat
from tvmq.plan.nodes import CLIPS, MULTIPLYING, OUTPUT, Node, Nodes
from tvmq.record import Record

ACCUMULATING = ("linear", "conv2d")  # their kernels add a residual, and give floats straight away
WANTS = {
    "linear": "uint8",
    "conv2d": "uint8",
    "depthwise": "uint8",
    "conv2d_transpose": "uint8",
    "attention": "int8",
    "layer_norm": "int16",
    "unary": "uint8",
    "add": "int16",
    "mean_pool": "uint8",
}
FOLLOWING = ("unary", "max_pool", "mean_pool")  # integers pay only where their input holds some already
FLOAT = "float32"


@dataclass(frozen=True, slots=True)
class Formats(Record):
    """The storage of every value of a planned module."""

    values: Mapping[str, ValueFormat]  # by value name, in graph order
    integer: frozenset[str]  # the nodes computed in integers
    uint8_readers: frozenset[str]  # nodes that read the uint8 copy of an int16 value
    roots: Mapping[str, str]  # node with constant operands that share a region -> a stored value of it


def value_formats(nodes: Nodes, is_integer: Callable[[str], bool]) -> Formats:
    """Return how every value is stored; is_integer says which sites the plan quantizes."""
    integer = integer_nodes(nodes, is_integer)
    fused = swallowed(nodes, integer)
    demand = _demands(nodes, integer, fused)
    regions = _Regions(nodes, integer, fused)
    formats: dict[str, ValueFormat] = {}
    for name in (*nodes.parameters, *nodes.by_name):
        node = nodes.by_name.get(name)
        if name in fused or (node is not None and _is_view(node)):
            continue
        direct = node is not None and _accumulates(nodes, node)
        dtype = _storage(node, demand.get(name, set()), name in integer, direct)
        if dtype is None:
            continue
        also = dtype == "int16" and "uint8" in demand[name]
        formats[name] = ValueFormat(dtype, regions.of(name), also, _sole_unary(nodes, name, integer))
    formats = _widened(formats, demand)
    readers = frozenset(
        binding
        for name, node in nodes.by_name.items()
        for binding in node.bindings
        if (name in integer and WANTS.get(node.kind) == "uint8")
        or (_is_view(node) and demand[name] == {"uint8"})
    )
    roots = {
        name: regions.roots(name)[0]
        for name, node in nodes.by_name.items()
        if name in integer and (node.kind == "add" or node.op == "concat")
    }
    return Formats(formats, integer, readers, {k: v for k, v in roots.items() if v in formats})


def integer_nodes(nodes: Nodes, is_integer: Callable[[str], bool]) -> frozenset[str]:
    """Return the nodes computed in integers: the planned sites, and the adds and views between them."""
    found: set[str] = set()
    for name, node in nodes.by_name.items():
        if node.kind == "embedding" and is_integer(name):
            found.add(name)
        elif node.kind in FOLLOWING:
            if is_integer(name) and node.inputs[0] in found:
                found.add(name)
        elif node.kind in WANTS and node.kind != "add":
            if is_integer(name):
                found.add(name)
        elif node.kind in ("add", "view", "bias") and any(source in found for source in node.inputs):
            found.add(name)
    return frozenset(found)


def swallowed(nodes: Nodes, integer: frozenset[str]) -> dict[str, str]:
    """Return value -> the only consumer that computes it on the fly, for values that are never stored."""
    fused: dict[str, str] = {}
    taken: set[str] = set()  # adds that already swallow one operand
    for name, node in nodes.by_name.items():
        user = nodes.sole_consumer(name)
        if name not in integer or user is None or user.name not in integer:
            continue
        multiplies = node.kind in MULTIPLYING or node.kind == "bias"
        clipped = user.op in CLIPS and (multiplies or node.kind == "add")
        if clipped or (node.kind in MULTIPLYING and user.kind == "bias"):
            fused[name] = user.name
            continue
        joins = user.kind == "add" and len(user.inputs) == 2 and user.name not in taken
        if joins and _accumulates(nodes, node):
            fused[name] = user.name
            taken.add(user.name)
    return fused


def _demands(nodes: Nodes, integer: frozenset[str], fused: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the storage types that the consumers of each value ask for."""
    demand: dict[str, set[str]] = {}
    for name in reversed((*nodes.parameters, *nodes.by_name)):
        wishes = demand.setdefault(name, set())
        for user in nodes.consumers.get(name, ()):
            if user == OUTPUT:
                wishes.add(FLOAT)
                continue
            node = nodes.by_name[user]
            if _is_view(node):
                wishes |= demand[user]
            elif node.kind == "bias" or fused.get(name) == user:
                continue
            elif node.kind == "max_pool" and user in integer:  # stored as its result is
                wishes.add("int16" if "int16" in demand[user] else "uint8")
            else:
                wishes.add(WANTS[node.kind] if user in integer else FLOAT)
    return demand


def _accumulates(nodes: Nodes, node: Node) -> bool:
    """Whether a value is the accumulator of a kernel that adds residuals to it, or makes it float."""
    source = nodes.by_name.get(node.inputs[0], node) if node.kind == "bias" else node
    return source.kind in ACCUMULATING


def _storage(node: Node | None, wishes: set[str], integer: bool, direct: bool) -> str | None:
    wanted = wishes - {FLOAT}
    if node is not None and node.kind == "embedding" and integer:
        return "int16"  # one scale holds rows that calibration never saw
    if not wanted:
        # An accumulator becomes float directly; what is 8 bits inside is stored before it becomes float.
        if node is None or not integer or direct:
            return None
        return "uint8" if node.kind in ("attention", "unary", "max_pool") else "int16"
    if wanted == {"uint8", "int16"} or len(wanted) > 1:
        return "int16"
    return wanted.pop()


def _widened(formats: Mapping[str, ValueFormat], demand: Mapping[str, set[str]]) -> dict[str, ValueFormat]:
    """Return formats with int16 for all values of a region that holds one of int16: they share its scale."""
    wide = {fmt.region for fmt in formats.values() if fmt.dtype == "int16"}
    return {
        name: replace(fmt, dtype="int16", also_uint8="uint8" in demand[name])
        if fmt.region in wide and fmt.dtype == "uint8"
        else fmt
        for name, fmt in formats.items()
    }


def _is_view(node: Node) -> bool:
    return node.kind == "view"


def _sole_unary(nodes: Nodes, name: str, integer: frozenset[str]) -> str | None:
    user = nodes.sole_consumer(name)
    return user.op if user is not None and user.kind == "unary" and user.name in integer else None


class _Regions:
    """Union-find over stored values that must share one scale."""

    def __init__(self, nodes: Nodes, integer: frozenset[str], fused: Mapping[str, str]) -> None:
        self._parent: dict[str, str] = {}
        self._nodes = nodes
        self._fused = fused
        for name, node in nodes.by_name.items():
            joins = node.kind in ("add", "max_pool") or (node.kind == "view" and node.op == "concat")
            if joins and name in integer:
                members = [root for source in node.inputs for root in self.roots(source)]
                members += [] if node.kind == "view" else [self._final(name)]
                for other in members[1:]:
                    self._join(members[0], other)

    def of(self, name: str) -> str:
        """Return the region's representative, its first value in graph order."""
        while name in self._parent:
            name = self._parent[name]
        return name

    def roots(self, name: str) -> list[str]:
        """Return the stored values behind a value, views and swallowed values looked through."""
        node = self._nodes.by_name.get(name)
        if node is not None and _is_view(node):
            return [root for source in node.inputs for root in self.roots(source)]
        return [self._final(name)]

    def _final(self, name: str) -> str:
        while name in self._fused:
            name = self._fused[name]
        return name

    def _join(self, a: str, b: str) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            order = list((*self._nodes.parameters, *self._nodes.by_name))
            first, second = sorted((a, b), key=order.index)
            self._parent[second] = first
