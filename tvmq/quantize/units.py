"""Cut a graph into units: stretches of bindings that one value goes into and one comes out of.

In a network with a residual trunk a unit is one branch with its addition, in a plain chain one site. Nagel et
al., "Up or Down? Adaptive Rounding" (2020), optimise single layers; Li et al., "BRECQ" (2021), section 3.2,
show that blocks are the better unit, since errors inside of one make up for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax

from tvmq.passes.rebuild import bindings, used_vars


@dataclass(frozen=True, slots=True)
class Unit:
    """Bindings in order; outside of them only `source` is read, and of them only `result` is read outside."""

    source: relax.Var
    result: relax.Var
    steps: tuple[Any, ...]  # bindings


def units(
    main: relax.Function, counts: Callable[[str], bool], goes_on: Callable[[str], bool]
) -> tuple[Unit, ...]:
    """Return main's units in order, each with at least one binding that counts.

    counts, goes_on: by binding's name; a unit does not end where one goes on, as a product does in its bias.
    What several inputs make together before the first cut belongs to no unit.
    """
    steps = bindings(main)
    last = {var: index for index, step in enumerate(steps) for var in used_vars(step.value)}
    last |= dict.fromkeys(used_vars(main.body.body), len(steps))
    found: list[Unit] = []
    source = main.params[0] if len(main.params) == 1 else None
    live, begin = set(main.params), 0
    for index, step in enumerate(steps):
        live = {var for var in (*live, step.var) if last.get(var, -1) > index}
        if live - {step.var} or goes_on(step.var.name):
            continue
        stretch = steps[begin : index + 1]
        if source is None:
            source, begin = step.var, index + 1
        elif any(counts(each.var.name) for each in stretch):
            found.append(Unit(source, step.var, stretch))
            source, begin = step.var, index + 1
    return tuple(found)
