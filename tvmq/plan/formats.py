"""Find how each float value of a planned module is stored: uint8, int8, int16, or not at all.

Consumers decide. A linear or a table wants uint8, attention int8, a layer norm and a residual add the int16
trunk; views pass the wish on. Values joined by an add or a concat form a region and share one scale.
A value that its only consumer swallows (bias add, residual add, relu after a linear) is never stored.

Bits follow the same way: what is read by products alone has the most bits that one of them asks for; tables,
means, float operations and the model's output ask for 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tvmq.formats import ValueFormat
from tvmq.plan.edges import NARROWED
from tvmq.plan.nodes import CLIPS, MULTIPLYING, OUTPUT, Node, Nodes
from tvmq.record import Record
from tvmq.spec import Precision

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
NO_PRECISIONS: Mapping[str, Precision] = MappingProxyType({})
Wishes = dict[str, int]  # storage type -> bits


@dataclass(frozen=True, slots=True)
class Formats(Record):
    """The storage of every value of a planned module."""

    values: Mapping[str, ValueFormat]  # by value name, in graph order
    integer: frozenset[str]  # the nodes computed in integers
    uint8_readers: frozenset[str]  # nodes that read the uint8 copy of an int16 value
    roots: Mapping[str, str]  # node with constant operands that share a region -> a stored value of it
    weight_bits: Mapping[str, int] = field(default_factory=dict)  # by site; what is not named has 8

    def source(self, nodes: Nodes, name: str) -> str | None:
        """Return the stored value behind views, None if there is none."""
        while name not in self.values:
            node = nodes.by_name.get(name)
            if node is None or not _is_view(node):
                return None
            name = node.inputs[0]
        return name

    def bits_read(self, nodes: Nodes, name: str) -> int:
        """Return the bits of a value as products and attention read it, views looked through."""
        source = self.source(nodes, name)
        return 8 if source is None else self.values[source].bits


def value_formats(
    nodes: Nodes, is_integer: Callable[[str], bool], precisions: Mapping[str, Precision] = NO_PRECISIONS
) -> Formats:
    """Return how every value is stored; is_integer says which sites the plan quantizes.

    precisions: by site; 8 bits where none is named.
    """
    integer = integer_nodes(nodes, is_integer)
    fused = swallowed(nodes, integer)
    demand = _demands(nodes, integer, fused, precisions)
    regions = _Regions(nodes, integer, fused)
    formats: dict[str, ValueFormat] = {}
    for name in (*nodes.parameters, *nodes.by_name):
        node = nodes.by_name.get(name)
        if name in fused or (node is not None and _is_view(node)):
            continue
        direct = node is not None and _accumulates(nodes, node)
        dtype = _storage(node, demand[name].keys(), name in integer, direct)
        if dtype is None:
            continue
        also = dtype == "int16" and "uint8" in demand[name]
        unary, bits = _sole_unary(nodes, name, integer), _bits(dtype, demand[name])
        formats[name] = ValueFormat(dtype, regions.of(name), also, unary, bits)
    formats = _widened(formats, demand)
    readers = frozenset(
        binding
        for name, node in nodes.by_name.items()
        for binding in node.bindings
        if (name in integer and WANTS.get(node.kind) == "uint8")
        or (_is_view(node) and demand[name].keys() == {"uint8"})
    )
    roots = {
        name: regions.roots(name)[0]
        for name, node in nodes.by_name.items()
        if name in integer and (node.kind == "add" or node.op == "concat")
    }
    weight_bits = {
        name: precisions[name].weight_bits
        for name, node in nodes.by_name.items()
        if name in integer and node.kind in MULTIPLYING and name in precisions
    }
    roots = {name: root for name, root in roots.items() if root in formats}
    return Formats(formats, integer, readers, roots, weight_bits)


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


def final(name: str, fused: Mapping[str, str]) -> str:
    """Return the value that a kernel stores of name, whatever it swallows behind it."""
    while name in fused:
        name = fused[name]
    return name


def _demands(
    nodes: Nodes, integer: frozenset[str], fused: Mapping[str, str], precisions: Mapping[str, Precision]
) -> dict[str, Wishes]:
    """Return the storage types that the consumers of each value ask for, and the most bits of each."""
    demand: dict[str, Wishes] = {}
    for name in reversed((*nodes.parameters, *nodes.by_name)):
        wishes = demand.setdefault(name, {})
        for user in nodes.consumers.get(name, ()):
            for dtype, bits in _wishes_of(nodes, user, name, integer, fused, demand, precisions).items():
                wishes[dtype] = max(bits, wishes.get(dtype, 0))
    return demand


def _wishes_of(
    nodes: Nodes,
    user: str,
    name: str,
    integer: frozenset[str],
    fused: Mapping[str, str],
    demand: Mapping[str, Wishes],
    precisions: Mapping[str, Precision],
) -> Wishes:
    """Return what one consumer asks for; a view or a largest asks for what is asked of its result."""
    if user == OUTPUT:
        return {FLOAT: 8}
    node = nodes.by_name[user]
    if _is_view(node):
        return demand[user]
    if node.kind == "bias" or fused.get(name) == user:
        return {}
    if user not in integer:
        return {FLOAT: 8}
    if node.kind == "max_pool":  # stored as its result is
        dtype = "int16" if "int16" in demand[user] else "uint8"
        return {dtype: _bits(dtype, demand[user])}
    narrowed = node.kind in NARROWED and user in precisions
    return {WANTS[node.kind]: precisions[user].activation_bits if narrowed else 8}


def _bits(dtype: str, wishes: Wishes) -> int:
    """Return the bits of what is stored as dtype; those of the uint8 copy where that is int16."""
    if dtype == "int16":
        return wishes.get("uint8", 8)
    return max([bits for kind, bits in wishes.items() if kind in (dtype, FLOAT)], default=8)


def _accumulates(nodes: Nodes, node: Node) -> bool:
    """Whether a value is the accumulator of a kernel that adds residuals to it, or makes it float."""
    source = nodes.by_name.get(node.inputs[0], node) if node.kind == "bias" else node
    return source.kind in ACCUMULATING


def _storage(node: Node | None, wishes: AbstractSet[str], integer: bool, direct: bool) -> str | None:
    wanted = set(wishes) - {FLOAT}
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


def _widened(formats: Mapping[str, ValueFormat], demand: Mapping[str, Wishes]) -> dict[str, ValueFormat]:
    """Return formats with int16 for all values of a region that holds one of int16: they share its scale.

    All others of a region share their bits too.
    """
    wide = {fmt.region for fmt in formats.values() if fmt.dtype == "int16"}
    most: dict[str, int] = {}
    for fmt in formats.values():
        most[fmt.region] = max(fmt.bits, most.get(fmt.region, 0))
    result = {}
    for name, fmt in formats.items():
        if fmt.region not in wide:
            result[name] = replace(fmt, bits=most[fmt.region])
        elif fmt.dtype == "uint8":
            wishes = demand[name]
            bits = _bits("int16", wishes)
            result[name] = replace(fmt, dtype="int16", also_uint8="uint8" in wishes, bits=bits)
        else:
            result[name] = fmt
    return result


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
        return final(name, self._fused)

    def _join(self, a: str, b: str) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            order = list((*self._nodes.parameters, *self._nodes.by_name))
            first, second = sorted((a, b), key=order.index)
            self._parent[second] = first
