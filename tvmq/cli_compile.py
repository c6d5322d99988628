"""The compile command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

import tvmq
from tvmq import report
from tvmq.cli_output import StageDisplay, show
from tvmq.cli_process import told_warnings
from tvmq.errors import InterruptedRunError, TvmqWarning, UsageError
from tvmq.images import Preprocessing, load_calibration, preprocessing_from_text
from tvmq.model_file import ModelFile, open_model
from tvmq.new_file import require_place
from tvmq.progress import StageClock
from tvmq.target import load_profile
from tvmq.tune.results import TunedKernel, TuningInterrupted

if TYPE_CHECKING:
    from tvmq.compiled import CompiledModel


@dataclass(frozen=True, slots=True)
class Data:
    """Where calibration data comes from; mean and std as the user wrote them."""

    path: str
    samples: int
    batch: int | None  # None: as the model says, 1 where it leaves it open
    mean: str
    std: str

    def preprocessing(self) -> Preprocessing | None:
        """Return how photos become inputs, None where nothing was said."""
        return preprocessing_from_text(self.mean, self.std) if self.mean or self.std else None


@dataclass(frozen=True, slots=True)
class Beside:
    """Files that are written beside the artifact, if any."""

    recipe: Path | None = None
    picture: Path | None = None

    def check(self, bits: object) -> None:
        """Raise UsageError for what could not be written at the end."""
        for path in (self.recipe, self.picture):
            if path is not None:
                require_place(path)
        if self.picture is not None and self.picture.suffix not in (".png", ".svg", ".html"):
            raise UsageError(f"{self.picture}: a picture ends in .png, .svg or .html; name it so")
        if self.picture is not None and bits != "auto":
            raise UsageError(f"--picture {self.picture}: shows how bits were chosen; add --bits auto")

    def write(self, compiled: CompiledModel) -> dict[str, str]:
        """Write the files; return where they are, by what they are."""
        if self.recipe is not None:
            compiled.recipe.save(self.recipe)
        if self.picture is not None and compiled.search is not None:
            from tvmq.analysis.plan_pictures import draw_plan

            draw_plan(compiled.search, self.picture)
        named = {"recipe": self.recipe, "picture": self.picture}
        return {name: str(path) for name, path in named.items() if path is not None}


NOTHING = Beside()
LIMITS = ("max_latency_ms", "max_size_mb", "max_drop", "minutes")


def planning(
    limits: Sequence[float | None], log: Path | None, recipe: Path | None, min_coverage: float | None
) -> dict[str, Any]:
    """Return the options of tvmq.compile that were given for choosing bits; limits in the order of LIMITS."""
    named = zip(LIMITS, limits, strict=True)
    given: dict[str, Any] = {name: value for name, value in named if value is not None}
    if log is not None:
        from tvmq.plan.options import Budget

        given["budget"] = Budget(log=log)
    if recipe is not None:
        given["recipe"] = recipe
    return given if min_coverage is None else given | {"min_coverage": min_coverage}


def require_search(options: Mapping[str, Any]) -> None:
    """Raise UsageError for limits of a search where there is none: now, not after seconds of imports."""
    limits = [f"--{name.replace('_', '-')}" for name in LIMITS if name in options]
    if limits and options["bits"] != "auto":
        raise UsageError(f"{', '.join(limits)}: limits what --bits auto chooses; add that, or leave it out")


def compile_model(
    path: Path,
    data: Data,
    output: Path | None,
    options: Mapping[str, Any],
    beside: Beside = NOTHING,
    *,
    as_json: bool,
) -> int:
    """Compile the model at path and write the artifact; options go to tvmq.compile."""
    output = output or path.with_suffix(".tvmq")
    check_paths(path, output)
    beside.check(options["bits"])
    require_search(options)
    profile = load_profile(options["target"])
    preprocessing = data.preprocessing()
    with StageDisplay() as display, calibration_warnings(display) as said:
        clock = StageClock(display)
        clock("start", 0, 1)  # seconds, for the compiler's packages
        opened = opened_model(path, data.batch, display)
        batches = load_calibration(data.path, opened.inputs, preprocessing=preprocessing, limit=data.samples)
        try:
            compiled = tvmq.compile(
                opened.model,
                example_inputs=opened.examples(),
                calibration=batches,
                progress=clock,
                **options,
            )
        except TuningInterrupted as error:
            raise InterruptedRunError(str(error)) from None
        clock("save", 0, 1)
        compiled.save(output)
        written = beside.write(compiled)
        clock("save", 1, 1)
        clock.finish()
    size = output.stat().st_size
    facts = {"artifact": output, "size": report.size(size), "target": profile.name}
    facts |= {"calibrated on": f"{batches}, from {data.path}", **written}
    numbers = {"artifact": str(output), "bytes": size, "target": profile.name, "warnings": said, **written}
    numbers["calibration_samples"] = batches.samples
    numbers["calibration_samples_left_out"] = batches.found - batches.samples
    _show(compiled, clock.seconds, facts, numbers, as_json=as_json)
    return 0


def _show(
    compiled: CompiledModel,
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Show what was made; seconds by stage, facts for people, numbers the same for programs."""
    tuned = compiled.manifest.description.recipe["tuned"]
    plan = compiled.search
    planned: list[RenderableType] = []
    if plan is not None:
        from tvmq.analysis.plan_pictures import tables

        planned, numbers = [tables(plan)], {**numbers, "plan": plan.to_json()}
    rounded = {stage: round(spent, 3) for stage, spent in seconds.items()}
    show(
        {**numbers, "seconds": rounded, "coverage": compiled.coverage.as_json(), "tuned": tuned},
        report.coverage_summary(compiled.coverage),
        *planned,
        *([report.tuning([TunedKernel.from_json(row) for row in tuned])] if tuned else []),
        report.stages(seconds),
        report.facts("Compiled", facts),
        as_json=as_json,
    )


def opened_model(path: Path, batch: int | None, display: StageDisplay) -> ModelFile:
    """Return the model at path; say so where its open batch becomes 1 unasked."""
    opened = open_model(path, batch)
    if opened.batch is not None and batch is None:
        display.say(f"{path} leaves the batch open, so it is compiled for {opened.batch}; --batch is another")
    return opened


@contextmanager
def calibration_warnings(display: StageDisplay) -> Iterator[list[str]]:
    """Say our warnings while stages run, and give their texts; others pass as usual."""
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        display.say(f"warning: {message}")

    with told_warnings(say):
        warnings.simplefilter("always", TvmqWarning)
        yield said


def check_paths(model: Path, output: Path | None) -> None:
    """Refuse, with a UsageError, a model that is not there and a path that no file can be written to."""
    # Said now, not after minutes of work.
    if not model.exists():
        raise UsageError(f"{model}: no such file, wanted a model in .onnx or .pt2; check the path")
    if output is not None:
        require_place(output)
