"""Tie the sites that must share a precision: one decision each.

The linears that one attention reads, the products that read one value (it is stored in one way), and the two
products of which a residual sum is made. Tables and poolings go with the product before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tvmq.plan.cost_table import FLOAT, precision_name
from tvmq.plan.edges import NARROWED, edge_sites
from tvmq.plan.formats import FOLLOWING
from tvmq.plan.nodes import MULTIPLYING, OUTPUT, Node, Nodes
from tvmq.record import Record
from tvmq.spec import W8A8, Plan, Precision

WALKED = ("bias", "add", "view", *FOLLOWING)  # what lies between a product and its readers


@dataclass(frozen=True, slots=True)
class SiteGroup(Record):
    """Sites of one precision, in graph order, and the names of those that they may take, float among them."""

    name: str  # the first site's, shortened where the others continue it: "blocks.0.attn.qkv"
    sites: tuple[str, ...]
    choices: tuple[str, ...]


def site_groups(nodes: Nodes, plan: Plan, precisions: Sequence[Precision]) -> tuple[SiteGroup, ...]:
    """Return the groups of all sites that a plan for integers has not left in float.

    precisions: what products other than the first and the last may take besides 8 bits and float; attention
    takes their activation bits.
    """
    planned = [site.site for site in plan.sites if site.precision is not None]
    together = _Together(planned)
    for name in planned:
        node = nodes.by_name[name]
        if node.kind in FOLLOWING:
            together.join([name, *_products_before(nodes, node.inputs[0], together)][:2])
        elif node.kind == "attention":
            sources = [_products_before(nodes, value, together) for value in node.inputs[:3]]
            together.join([found[0] for found in sources if found])
        elif node.kind in MULTIPLYING:
            together.join(_readers(nodes, node.inputs[0], together))
    for node in nodes.by_name.values():
        if node.kind == "add" and len(node.inputs) == 2:
            arms = [_product_at(nodes, value, together) for value in node.inputs]
            together.join([arm for arm in arms if arm is not None] if None not in arms else [])
    edges = edge_sites(nodes)
    return tuple(
        SiteGroup(_name(sites), sites, _choices(nodes, sites, edges, precisions)) for sites in together.sets()
    )


class _Together:
    """Union-find over sites."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._order = {site: place for place, site in enumerate(sites)}
        self._parent = {site: site for site in sites}

    def __contains__(self, site: str) -> bool:
        return site in self._parent

    def join(self, sites: Sequence[str]) -> None:
        roots = sorted({self._root(site) for site in sites}, key=self._order.__getitem__)
        for other in roots[1:]:
            self._parent[other] = roots[0]

    def sets(self) -> list[tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for site in self._parent:
            found.setdefault(self._root(site), []).append(site)
        return [tuple(sites) for sites in found.values()]

    def _root(self, site: str) -> str:
        while self._parent[site] != site:
            site = self._parent[site]
        return site


def _products_before(nodes: Nodes, value: str, sites: _Together) -> list[str]:
    """Return the planned product that a value was made from by biases, sums, views and tables, if any."""
    while value in nodes.by_name:
        node = nodes.by_name[value]
        if node.kind in NARROWED:
            return [value] if value in sites else []
        if node.kind not in WALKED or not node.inputs:
            return []
        value = node.inputs[-1] if node.kind == "add" else node.inputs[0]
    return []


def _product_at(nodes: Nodes, value: str, sites: _Together) -> str | None:
    """Return the planned product whose result, with its bias, a value is."""
    node = nodes.by_name.get(value)
    if node is not None and node.kind == "bias":
        node = nodes.by_name.get(node.inputs[0])
    return node.name if node is not None and node.kind in MULTIPLYING and node.name in sites else None


def _readers(nodes: Nodes, value: str, sites: _Together) -> list[str]:
    """Return the planned products that read a value, views of it looked through."""
    while value in nodes.by_name and nodes.by_name[value].kind == "view":
        value = nodes.by_name[value].inputs[0]
    return list(_through_views(nodes, value, sites))


def _through_views(nodes: Nodes, value: str, sites: _Together) -> Iterator[str]:
    for user in nodes.consumers.get(value, ()):
        if user == OUTPUT:
            continue
        kind = nodes.by_name[user].kind
        if kind == "view":
            yield from _through_views(nodes, user, sites)
        elif kind in MULTIPLYING and user in sites:
            yield user


def _choices(
    nodes: Nodes, sites: Sequence[str], edges: Mapping[str, str], precisions: Sequence[Precision]
) -> tuple[str, ...]:
    kinds: list[Node] = [nodes.by_name[site] for site in sites if nodes.by_name[site].kind in NARROWED]
    found = [W8A8]
    if kinds and not any(site in edges for site in sites):
        multiplies = any(node.kind in MULTIPLYING for node in kinds)
        found += [p if multiplies else Precision(8, p.activation_bits) for p in precisions]
    return tuple(dict.fromkeys([*map(precision_name, found), FLOAT]))


def _name(sites: Sequence[str]) -> str:
    """Return the first site's name, without the last part where all others have the rest of it too."""
    stem, dot, _ = sites[0].rpartition(".")
    shared = len(sites) > 1 and dot and all(site.startswith(stem + dot) for site in sites)
    return stem if shared and stem.count(".") > 1 else sites[0]
