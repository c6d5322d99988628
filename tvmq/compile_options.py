"""What `compile` was asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmq.errors import UsageError
from tvmq.plan.assign import NO_REASONS, Bits
from tvmq.plan.cost_table import precision_name
from tvmq.plan.options import AUTO, Budget
from tvmq.plan.recipe import Recipe
from tvmq.plan.search import log_file
from tvmq.prepared import Settings
from tvmq.quantize.presets import Preset, preset_of
from tvmq.quantizer import check_quantization, patterns
from tvmq.spec import W8A8, Plan, Precision
from tvmq.tune.options import Tune


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is to be quantized: a call's options, those of a recipe in their place."""

    bits: Bits | str  # AUTO, or given
    given: Bits
    reasons: Mapping[str, str]
    ignored: tuple[str, ...]
    requantize: str
    observer: str
    preset: str | Preset
    seed: int
    threads: int | None
    model: str | None  # hash of the model that a recipe is for

    @classmethod
    def of(
        cls,
        bits: Any,
        ignored: str | Sequence[str],
        requantize: str,
        observer: str,
        preset: str | Preset,
        seed: int,
        threads: int | None,
        recipe: str | Path | Recipe | None,
    ) -> Options:
        """Return checked options; UsageError for what does not exist, and for bits beside a recipe."""
        values = {
            "ignored": patterns(ignored),
            "requantize": requantize,
            "observer": observer,
            "preset": preset,
            "seed": seed,
            "threads": threads,
        }
        reasons, model = NO_REASONS, None
        if recipe is not None:
            if bits not in (8, "8"):
                raise UsageError(f"recipe: has bits of its own; leave out bits={bits!r}, or edit the recipe")
            read = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
            values |= read.options
            values["ignored"] = tuple(values["ignored"])  # type: ignore[arg-type]
            bits, reasons, model = read.bits, read.reasons, read.model
        automatic = bits == AUTO
        chosen = (values["requantize"], values["observer"], values["preset"])
        given = check_quantization(8 if automatic else bits, *chosen)  # type: ignore[arg-type]
        return cls(AUTO if automatic else given, given, reasons, **values, model=model)  # type: ignore[arg-type]

    def settings(self, *, strict: bool) -> Settings:
        """Return what a search for bits needs of these."""
        return Settings(
            ignored=self.ignored,
            requantize=self.requantize,
            observer=self.observer,
            seed=self.seed,
            strict=strict,
        )

    def require_model(self, plan: Plan) -> None:
        """Raise UsageError if these come from the recipe of another model."""
        if self.model not in (None, plan.module_hash):
            raise UsageError(
                f"recipe: is for another model (hash {self.model}, this one has {plan.module_hash}); take "
                "out its line `model = ...` if the names of sites fit all the same"
            )

    def told(self, plan: Plan, threads: int) -> dict[str, Any]:
        """Return what an artifact says of these: what makes its bytes again, however they were found."""
        uniform = isinstance(self.bits, Precision)
        by_site = {site.site: precision_name(site.precision) for site in plan.sites}
        return {
            "bits": self.bits.option if uniform else by_site,  # type: ignore[union-attr]
            "ignored": list(self.ignored),
            "requantize": self.requantize,
            "observer": self.observer,
            "preset": preset_of(self.preset).option,
            "seed": self.seed,
            "threads": threads,
        }


class Held:
    """Calibration data that may be gone through twice."""

    def __init__(self, items: Sequence[Any], prepared: str) -> None:
        self._items, self.prepared = items, prepared

    @classmethod
    def of(cls, calibration: Any) -> Any:
        """Return the data itself, or what an iterator of it gives."""
        if not isinstance(calibration, Iterator):
            return calibration
        return cls(list(calibration), getattr(calibration, "prepared", ""))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def check_budget(options: Options, budget: Budget, validation: Any) -> None:
    """Raise UsageError for a budget that nothing would keep to, a log that is some other file, and for a
    validation that is no function.
    """
    if validation is not None and not callable(validation):
        raise UsageError(f"validation={validation!r}: a function of a model is wanted, returning a number")
    if options.bits != AUTO and (budget != Budget() or validation is not None):
        raise UsageError(
            f'bits={W8A8 if options.bits == W8A8 else "given"}: a budget and validation are for bits="auto" '
            "alone; pass that, or leave them out"
        )
    if budget.path is not None:
        log_file(budget.path)


def check_build(threads: int | None, tune: Tune | None, min_coverage: float | None) -> None:
    """Raise UsageError for a number of threads, a tuning or a coverage that there is none of."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads!r}: at least 1 is wanted; leave it out to use all cores")
    if tune is not None and not isinstance(tune, Tune):
        raise UsageError(f"tune={tune!r}: a tvmq.Tune is wanted, e.g. tune=tvmq.Tune(trials=32)")
    if min_coverage is not None and not 0 <= min_coverage <= 1:
        raise UsageError(f"min_coverage={min_coverage!r}: a share from 0 to 1 is wanted")
