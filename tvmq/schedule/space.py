"""What may be decided about a kernel: named choices, and which of them go together.

A decision changes the speed of a kernel and never its numbers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Choice = int | str  # and bool; JSON keeps all of them apart
Decisions = Mapping[str, Choice]

ATTEMPTS = 100  # draws of a random neighbour before the space counts as empty around a point


def _any(decisions: Decisions) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Space:
    """The choices of a kernel by name; the default ones are good without tuning.

    valid: which combinations a kernel can be built of; the default is one of them.
    """

    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    default: Decisions = field(default_factory=dict)
    valid: Callable[[Decisions], bool] = _any

    def __post_init__(self) -> None:
        if self.default not in self:
            raise ValueError(
                f"Space: the default {dict(self.default)} is no valid combination of the choices "
                f"{dict(self.choices)}; list each of its values"
            )

    def __contains__(self, decisions: object) -> bool:
        """Return whether a kernel can be built by these decisions, exactly the named ones."""
        if not isinstance(decisions, Mapping) or decisions.keys() != self.choices.keys():
            return False
        # Equality alone takes True for 1.
        listed = all(
            any(type(value) is type(choice) and value == choice for choice in self.choices[name])
            for name, value in decisions.items()
        )
        return listed and self.valid(decisions)

    @property
    def bound(self) -> int:
        """Return how many combinations there are, valid or not."""
        return math.prod(len(choices) for choices in self.choices.values())

    def __iter__(self) -> Iterator[Decisions]:
        """Yield all valid decisions, in the order of the choices."""
        for values in itertools.product(*self.choices.values()):
            decisions = MappingProxyType(dict(zip(self.choices, values, strict=True)))
            if self.valid(decisions):
                yield decisions

    def neighbour(self, decisions: Decisions, chance: random.Random) -> Decisions:
        """Return valid decisions that differ in one or two choices; the same ones if none are found."""
        for _ in range(ATTEMPTS):
            changed = dict(decisions)
            for name in chance.choices(list(self.choices), k=chance.choice((1, 1, 2))):
                changed[name] = chance.choice(self.choices[name])
            if changed != decisions and self.valid(changed):
                return MappingProxyType(changed)
        return decisions
