"""Find which values are alive together: what a plan's peak of activation memory depends on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

from tvmq.plan.formats import Formats, swallowed
from tvmq.plan.nodes import OUTPUT, Nodes
from tvmq.plan.problem import FLOAT_BYTES, Moment
from tvmq.plan.values import Value

BYTES = {"uint8": 1, "int8": 1, "int16": 2}


def moments(
    nodes: Nodes, formats: Formats, values: Sequence[Value], parameters: Collection[str]
) -> tuple[Moment, ...]:
    """Return the points of the program at which more is alive than at any other, or other values are.

    formats: of the plan with all sites in integers. parameters: the float inputs of the model. Views take no
    memory of their own, and what a kernel computes on the fly takes none.
    """
    places = {name: place for place, name in enumerate((*nodes.parameters, *nodes.by_name))}
    fused = swallowed(nodes, formats.integer)
    spans = [(places[v.name], _last_use(nodes, v.name, places), v) for v in values if v.name not in fused]
    found: list[Moment] = []
    for name, now in places.items():
        found.append(_moment([v for first, last, v in spans if first <= now <= last], formats, parameters))
        # What is made here in float may be quantized next, when what it was made of is gone.
        kept = [v for first, last, v in spans if first == now or first <= now < last]
        if any(value.name == name for value in kept):
            found.append(replace(_moment(kept, formats, parameters), made=name))
    return _largest(found)


def _moment(alive: Sequence[Value], formats: Formats, parameters: Collection[str]) -> Moment:
    # The caller holds an input, whatever becomes of it.
    given = sum(FLOAT_BYTES * prod(v.shape) for v in alive if v.name in parameters)
    stored = {v.name: _stored_bytes(formats, v.name) * prod(v.shape) for v in alive}
    floating = {v.name: FLOAT_BYTES * prod(v.shape) * (v.name not in parameters) for v in alive}
    return Moment(given, stored, floating)


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


def _largest(found: Sequence[Moment]) -> tuple[Moment, ...]:
    """Leave out moments of which another has no less of anything."""
    kept: list[Moment] = []
    for moment in sorted(found, key=lambda m: (-m.fixed - sum(m.floating.values()), m.fixed, not m.made)):
        if not any(_covers(other, moment) for other in kept):
            kept.append(moment)
    return tuple(kept)


def _covers(other: Moment, moment: Moment) -> bool:
    pairs = ((other.stored, moment.stored), (other.floating, moment.floating))
    same = moment.made in ("", other.made) or not moment.floating[moment.made]
    return (
        same
        and other.fixed >= moment.fixed
        and all(ours.get(name, -1) >= theirs[name] for ours, theirs in pairs for name in theirs)
    )
