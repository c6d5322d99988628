"""How much work goes into the numbers: one word for all options."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tvmq.errors import UsageError


@dataclass(frozen=True, slots=True)
class Preset:
    """What is done after ranges are chosen from statistics."""

    name: str
    sequential: bool  # weights site by site on quantized inputs, else from statistics of float ones
    steps: bool = True  # refine activation steps on the outputs of their readers
    importance: bool = True  # rows count by what they change in the model's output
    compensate: bool = True  # weights make up for the error of quantized inputs
    adapt_steps: int = 0  # of gradient descent for the rounding of each unit of sites; 0: none
    joint: int = 0  # losses of the whole model that a joint search of activation steps may ask for; 0: none

    @property
    def option(self) -> str | dict[str, Any]:
        """Return what recipes call it: the name, and of one's own all that was chosen."""
        return self.name if self == PRESETS.get(self.name) else asdict(self)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fast", sequential=False),
        Preset("default", sequential=True),
        Preset("best", sequential=True, adapt_steps=400),
    )
}
DEFAULT = "default"


def preset_of(name: str | Preset) -> Preset:
    """Return the preset of this name, or one's own as it is; UsageError if there is none."""
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise UsageError(f"preset={name!r} is unknown; choose one of {list(PRESETS)}")
    return PRESETS[name]
