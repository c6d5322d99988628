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
    """Bindings in order; of values made outside, they read `source` and the exact `others`."""

    source: relax.Var
    others: tuple[relax.Var, ...]  # that quantization does not touch: masks
    results: tuple[relax.Var, ...]  # what is read outside; the last is the next unit's source
    steps: tuple[Any, ...]  # bindings


def units(
    main: relax.Function,
    counts: Callable[[str], bool],
    goes_on: Callable[[str], bool],
    stored: Callable[[str], bool],
) -> tuple[Unit, ...]:
    """Return main's units in order, each with at least one binding that counts.

    counts, goes_on, stored: by binding's or parameter's name. A unit does not end where one goes on, as a
    product does in its bias; what no stored value went into is exact.
    What several inputs make together before the first cut belongs to no unit.
    """
    outputs = set(used_vars(main.body.body))
    tuples = [step for step in bindings(main) if step.var in outputs and isinstance(step.value, relax.Tuple)]
    outputs |= {var for each in tuples for var in used_vars(each.value)}
    steps = [step for step in bindings(main) if step not in tuples]
    exact = _exact(main, stored)
    last = {var: index for index, step in enumerate(steps) for var in used_vars(step.value)}
    found: list[Unit] = []
    live, begin = set(main.params) - exact, 0
    source = next(iter(live)) if len(live) == 1 else None
    for index, step in enumerate(steps):
        live = {var for var in (*live, step.var) if last.get(var, -1) > index} - exact
        if live - {step.var} or step.var in exact or goes_on(step.var.name):
            continue
        stretch = tuple(steps[begin : index + 1])
        if source is None:
            source, begin = step.var, index + 1
        elif any(counts(each.var.name) for each in stretch):
            found.append(_unit(source, stretch, outputs))
            source, begin = step.var, index + 1
    return tuple(found)


def _unit(source: relax.Var, stretch: tuple[Any, ...], outputs: set[relax.Var]) -> Unit:
    made = [step.var for step in stretch]
    read = dict.fromkeys(var for step in stretch for var in used_vars(step.value))
    others = tuple(var for var in read if var not in {source, *made})
    early = tuple(var for var in made[:-1] if var in outputs)
    return Unit(source, others, (*early, made[-1]), stretch)


def _exact(main: relax.Function, stored: Callable[[str], bool]) -> set[relax.Var]:
    """Return the values that are the same in the quantized stream."""
    found = {param for param in main.params if not stored(param.name)}
    for step in bindings(main):
        if not stored(step.var.name) and all(var in found for var in used_vars(step.value)):
            found.add(step.var)
    return found
