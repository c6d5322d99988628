"""What an integer program chooses from, what each choice costs, and what a choice adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from tvmq.plan.cost_table import FLOAT, CostTable
from tvmq.plan.groups import SiteGroup
from tvmq.plan.values import Forms, conversions_ms, forms_of, with_sums
from tvmq.record import Record

EIGHT = "w8a8"
SLACK = 1e-6  # relative: what rounding in the solver may leave of a limit
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Record):
    """What a plan may cost at most; None: anything."""

    ms: float | None = None
    size: int | None = None  # bytes of the artifact
    memory: int | None = None  # bytes of activations at once
    loss: float | None = None

    def __str__(self) -> str:
        named = {"ms": self.ms, "loss": self.loss}
        said = [f"{value:g} {name}" for name, value in named.items() if value is not None]
        megabytes = {"MB": self.size, "MB of activations": self.memory}
        said += [f"{value / 1e6:.4g} {name}" for name, value in megabytes.items() if value is not None]
        return " and ".join(said) or "no limit"


@dataclass(frozen=True, slots=True)
class Assignment(Record):
    """A precision's name for every group, and what the plan is predicted to cost."""

    precisions: Mapping[str, str]
    loss: float
    ms: float
    size: int  # bytes
    memory: int  # bytes of activations at once

    @property
    def key(self) -> tuple[str, ...]:
        """Return the precisions in the order of the groups."""
        return tuple(self.precisions.values())

    def __str__(self) -> str:
        return f"{self.ms:.4g} ms, {self.size / 1e6:.4g} MB, predicted loss {self.loss:.3g}"


@dataclass(frozen=True, slots=True)
class Moment:
    """The bytes alive at one point: fixed ones, and those of values by their form."""

    fixed: int
    stored: Mapping[str, int]  # by value, while it is integers
    floating: Mapping[str, int]  # while it is not; while it is both, what is read in float comes on top
    made: str = ""  # the value that is made here: one that is quantized is both for a moment


@dataclass(frozen=True)
class Problem:
    """What there is to choose from, and what each choice costs."""

    groups: tuple[SiteGroup, ...]
    losses: Mapping[tuple[str, str], float]  # by group and precision; float has 0
    costs: CostTable
    moments: Sequence[Moment] = field(default=())

    @cached_property
    def choices(self) -> dict[str, dict[str, tuple[float, float, int]]]:
        """Return loss, milliseconds and bytes by group and precision; what has no price is no choice."""
        return {group.name: self._priced(group) for group in self.groups}

    @cached_property
    def fixed(self) -> tuple[float, int]:
        """Return milliseconds and bytes of what there is no choice of: sites that stay float among it."""
        grouped = {site for group in self.groups for site in group.sites}
        left = [c for c in self.costs.sites if c.precision == FLOAT and c.site not in grouped]
        ms = self.costs.fixed_ms + sum(cost.ms for cost in left)
        return ms, self.costs.fixed_bytes + sum(cost.weight_bytes for cost in left)

    def assignment(self, precisions: Mapping[str, str]) -> Assignment:
        """Return what a plan costs; precisions of all groups."""
        chosen = [self.choices[group.name][precisions[group.name]] for group in self.groups]
        ms = self.fixed[0] + sum(each[1] for each in chosen)
        sites = {s: precisions[group.name] != FLOAT for group in self.groups for s in group.sites}
        ms += conversions_ms(self.costs.values, sites)
        memory = self._memory(sites) if self.moments else 0
        size = self.fixed[1] + sum(each[2] for each in chosen)
        ordered = {group.name: precisions[group.name] for group in self.groups}
        return Assignment(ordered, sum(each[0] for each in chosen), ms, size, memory)

    def _memory(self, sites: Mapping[str, bool]) -> int:
        """Return the most bytes of activations alive at once."""
        integer = with_sums(self.costs.values, sites)
        forms = {value.name: forms_of(value, integer) for value in self.costs.values}
        return max(
            moment.fixed + sum(self._bytes(moment, name, forms[name]) for name in moment.floating)
            for moment in self.moments
        )

    def _bytes(self, moment: Moment, name: str, forms: Forms) -> int:
        if not forms.stored:
            return moment.floating[name]
        copies = sum(size for size, done in zip(self.copies[name], forms.dequantized, strict=True) if done)
        made = moment.floating[name] if forms.quantized and moment.made == name else 0
        return moment.stored.get(name, 0) + copies + made

    @cached_property
    def copies(self) -> dict[str, tuple[int, ...]]:
        """Return by value what each reading of it takes as a float copy of what is stored."""
        return {v.name: tuple(FLOAT_BYTES * prod(r.shape) for r in v.readings) for v in self.costs.values}

    def _priced(self, group: SiteGroup) -> dict[str, tuple[float, float, int]]:
        found = {}
        for precision in group.choices:
            ms, size, known = 0.0, 0, True
            for site in group.sites:
                cost = self._cost(site, precision)
                if cost is None:
                    known = not any(self._cost(site, other) for other in group.choices) and known
                    continue
                ms, size = ms + cost.ms, size + cost.weight_bytes
            if known:
                loss = 0.0 if precision == FLOAT else self.losses[group.name, precision]
                found[precision] = loss, ms, size
        return found

    def _cost(self, site: str, precision: str) -> Any:
        """Return the cost of a site; what has 8 bits whatever its group has (a table) is priced at that."""
        rows = self.costs.of
        exact = rows.get((site, precision))
        if exact is not None or precision == FLOAT or not self._eight_only(site):
            return exact
        return rows.get((site, EIGHT))

    def _eight_only(self, site: str) -> bool:
        return self._integer_prices.get(site) == {EIGHT}

    @cached_property
    def _integer_prices(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for cost in self.costs.sites:
            if cost.precision != FLOAT:
                found.setdefault(cost.site, set()).add(cost.precision)
        return found


def within(plan: Assignment, limits: Limits) -> bool:
    """Tell whether a plan keeps to the limits."""
    pairs = (
        (plan.ms, limits.ms),
        (plan.size, limits.size),
        (plan.memory, limits.memory),
        (plan.loss, limits.loss),
    )
    return all(most is None or value <= most + SLACK * abs(most) for value, most in pairs)
