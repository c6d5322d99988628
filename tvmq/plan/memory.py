"""Find which values are alive together: what a plan's peak of activation memory depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from tvmq.plan.formats import Formats, swallowed
from tvmq.plan.groups import SiteGroup
from tvmq.plan.nodes import OUTPUT, Nodes
from tvmq.plan.program import Moment

BYTES = {"uint8": 1, "int8": 1, "int16": 2}
FLOAT_BYTES = 4


def moments(
    nodes: Nodes, formats: Formats, groups: Sequence[SiteGroup], parameters: Mapping[str, int]
) -> tuple[Moment, ...]:
    """Return the points of the program at which more is alive than at any other, or other groups' values are.

    formats: of the plan with all sites in integers. parameters: the bytes of the model's inputs by name.
    Views take no memory of their own, and what a kernel computes on the fly takes none.
    """
    places = {name: place for place, name in enumerate((*nodes.parameters, *nodes.by_name))}
    fused = swallowed(nodes, formats.integer)
    at = {site: group.name for group in groups for site in group.sites}
    spans = [
        (places[name], _last_use(nodes, name, places), name)
        for name in places
        if name not in fused and not (name in nodes.by_name and nodes.by_name[name].kind == "view")
    ]
    found: list[Moment] = []
    for now in range(len(places)):
        alive = [name for first, last, name in spans if first <= now <= last]
        fixed = 0
        integer: dict[str, int] = {}
        floating: dict[str, int] = {}
        for name in alive:
            if name in parameters:
                fixed += parameters[name]
                continue
            size = prod(nodes.by_name[name].shape)
            owner = _owner(nodes, name, at)
            stored = _stored_bytes(formats, name) * size
            if owner is None:
                fixed += stored
                continue
            integer[owner] = integer.get(owner, 0) + stored
            floating[owner] = floating.get(owner, 0) + FLOAT_BYTES * size
        found.append(Moment(fixed, integer, floating))
    return _largest(found)


def _last_use(nodes: Nodes, name: str, places: Mapping[str, int]) -> int:
    """Return the place of the last reader of a value, or of a view of it."""
    last = places[name]
    for user in nodes.consumers.get(name, ()):
        if user == OUTPUT:
            return len(places)
        last = max(last, places[user])
        if nodes.by_name[user].kind in ("view", "bias"):
            last = max(last, _last_use(nodes, user, places))
    return last


def _stored_bytes(formats: Formats, name: str) -> int:
    fmt = formats.values.get(name)
    return FLOAT_BYTES if fmt is None else BYTES[fmt.dtype] + fmt.also_uint8


def _owner(nodes: Nodes, name: str, at: Mapping[str, str]) -> str | None:
    """Return the group that decides whether a value is float: of the site it was made by last."""
    while name not in at:
        node = nodes.by_name.get(name)
        if node is None or not node.inputs:
            return None
        name = node.inputs[-1] if node.kind == "add" else node.inputs[0]
    return at[name]


def _largest(found: Sequence[Moment]) -> tuple[Moment, ...]:
    """Leave out moments of which another has no less of anything."""
    kept: list[Moment] = []
    for moment in sorted(found, key=lambda m: (-m.fixed - sum(m.floating.values()), m.fixed)):
        if not any(_covers(other, moment) for other in kept):
            kept.append(moment)
    return tuple(kept)


def _covers(other: Moment, moment: Moment) -> bool:
    pairs = ((other.integer, moment.integer), (other.floating, moment.floating))
    return other.fixed >= moment.fixed and all(
        ours.get(name, 0) >= theirs[name] for ours, theirs in pairs for name in theirs
    )
