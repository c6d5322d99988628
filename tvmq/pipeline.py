"""The stages in order: the one file that sees them all.

    import -> canonicalize -> plan -> calibrate -> balance -> calibrate -> quantize -> qdq -> integer -> build

Each stage is a function or a TVM pass that can be called by itself; what lies between two stages is an
IRModule or frozen data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm

import tvmq
from tvmq.automatic import Costs, automatic
from tvmq.build import build
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.calibrate.calibration import Calibration
from tvmq.compile_options import Held, Options, check_budget, check_build
from tvmq.compiled import CompiledModel
from tvmq.cost.batch import sample_by_sample
from tvmq.cost.model_works import Subject, uniform
from tvmq.cost.table import cost_table, measurable, open_store
from tvmq.device import Device
from tvmq.environment import default_threads, require_tvm
from tvmq.errors import CalibrationError, TvmqWarning
from tvmq.formats import Quantization
from tvmq.golden import random_like
from tvmq.linker import require_linker
from tvmq.machine import machine_features
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.verify_level import verify
from tvmq.plan.assign import Bits, achieved, require_share
from tvmq.plan.cost_table import CostTable
from tvmq.plan.nodes import Nodes
from tvmq.plan.options import AUTO, Budget, merged
from tvmq.plan.recipe import Recipe
from tvmq.plan_evaluation import Runnable, Sizes, Validation
from tvmq.prepared import Prepared
from tvmq.progress import Progress, silent, step
from tvmq.quantize.presets import DEFAULT, Preset
from tvmq.quantizer import NO_CALIBRATION, canonical, quantized
from tvmq.samples import joined
from tvmq.schedule.cuda.toolkit import require_cuda
from tvmq.schedule.kernel_table import NO_DECISIONS
from tvmq.spec import W8A8, Built, Coverage, Description, Plan, Precision
from tvmq.target import TargetProfile, load_profile
from tvmq.tune.options import Tune
from tvmq.tune.results import TunedKernel, decisions_of
from tvmq.tune.tuner import prepare
from tvmq.tune.tuner import tune as tuned_kernels


def compile(  # noqa: A001  (tvmq.compile, like tvm.compile; every option is the user's)
    model: Any,
    target: Any = "native",
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    bits: int | str | Mapping[str, Any] = 8,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    max_drop: float | None = None,
    validation: Validation | None = None,
    minutes: float | None = None,
    budget: Budget | None = None,
    recipe: str | Path | Recipe | None = None,
    ignored: str | Sequence[str] = (),
    requantize: str = "pot",
    observer: str = "mse",
    preset: str | Preset = DEFAULT,
    strict: bool = False,
    min_coverage: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    tune: Tune | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> CompiledModel:
    """Return model as an integer program for target.

    model: a torch.nn.Module, a torch.export.ExportedProgram, an onnx.ModelProto, or a path to .onnx or .pt2.
    target: a profile's name or alias, a path to a profile, a tvm Target, or "native" for this CPU.
    example_inputs: what the model is called with; needed for a torch.nn.Module, else it sets the batch size.
    calibration: typical inputs, prepared as for the float model; arrays, tensors, tuples or dicts.
    bits: 8, 6 or 4 for weights and activations, or both as in "w4a8": weights 2 to 8, activations 3 to 8. The
    first and the last products keep 8, and so do tables; norms and residuals have 16. By site: a mapping of
    glob patterns to these or "float", of which the last that matches counts. "auto": chosen for each site.
    max_latency_ms, max_size_mb, max_drop: what "auto" keeps to (see Budget, which has more). Without any, the
    fastest plan of 8 bits and float. No site is in integers that float is faster for, as far as they allow.
    validation: what "auto" judges plans by: a function of a model (called like a compiled one) that returns a
    metric, higher is better. Without, agreement with float on calibration samples kept for it.
    minutes: how long "auto" evaluates plans for; what it found is in `compiled.search`. Plans are compared
    with numbers of preset "fast"; what comes out has those of the chosen one, and is evaluated once more.
    recipe: a file (see Recipe) whose bits and options take the place of those given here.
    ignored: glob patterns of sites that stay in float ("head", "blocks.0.*").
    requantize: "pot" makes every requantize a shift, with fewer than 8 bits of a small multiple of the sum;
    "fixed_point" uses 31-bit multipliers, for comparison.
    observer: how ranges are chosen: "mse" (least squared error), "lp" (least |error|**2.4), "aciq" (closed
    form), "kl" (entropy), "percentile" or "minmax"; or, on what each value's readers make of it, "cosine"
    (EasyQuant), "similarity" (and the ranks in attention maps) or "fisher" (gradients).
    preset: how much work goes into the numbers: "fast" (statistics alone, seconds), "default" (each site is
    solved for what it really sees, minutes) or "best" (roundings learn as well, many minutes).
    strict: refuse, with UnsupportedModelError, a model of which any site stays in float; min_coverage: one of
    which a smaller share of the multiplications, 0 to 1, is done in integers.
    seed: recorded in the artifact; every stage of this version is deterministic, on any number of cores.
    threads: how many the kernels are tiled for; all cores by default. Any number may run them.
    tune: measure on this machine, on its GPU for a GPU, which decisions make the kernels fastest, or use what
    a database says of them; None: the default decisions, whatever was measured before. The bits are the same.
    device: "tracker:HOST:PORT/KEY" or "rpc:HOST:PORT", a board that must be able to run the target's code;
    tune measures there.

    Raises UsageError, CalibrationError, UnsupportedModelError or EnvironmentMismatchError (tvmq.errors).
    """
    require_tvm()
    options = Options.of(bits, ignored, requantize, observer, preset, seed, threads, recipe)
    wishes = merged(
        budget, max_latency_ms=max_latency_ms, max_size_mb=max_size_mb, max_drop=max_drop, minutes=minutes
    )
    check_budget(options, wishes, validation)
    check_build(options.threads, tune, min_coverage)
    if calibration is None:
        raise CalibrationError(NO_CALIBRATION)
    profile = load_profile(target)
    require_linker(str(profile.tvm_target["mtriple"]))
    if profile.capability is not None:
        require_cuda(str(profile.tvm_target["arch"]))
    boards = Device.of(device) if device is not None else None
    threads = options.threads or (boards.require(profile).threads if boards else default_threads())
    if tune:
        prepare(profile, tune, threads, boards)  # what it refuses is said now, not after minutes of work
    held = Held.of(calibration) if options.bits == AUTO else calibration
    job = _Job(
        model, example_inputs, held, profile, options, strict, min_coverage, threads, tune, progress, boards
    )
    if options.bits == AUTO:
        return job.automatic(wishes, validation)
    return job.compiled(options.given, options.reasons)[0]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a call of compile is about, however its bits are found."""

    model: Any
    example_inputs: Any
    calibration: Any
    profile: TargetProfile
    options: Options
    strict: bool
    min_coverage: float | None
    threads: int
    tune: Tune | None
    progress: Progress
    boards: Device | None

    def automatic(self, budget: Budget, validation: Validation | None) -> CompiledModel:
        """Return the best of the plans that keep to a budget, made in full."""
        subject = canonical(self.model, self.example_inputs, progress=self.progress)
        plans = automatic(
            subject,
            list(as_batches(self.calibration, input_specs(subject))),
            self.profile,
            budget,
            self.options.settings(strict=self.strict),
            measured_costs(self.profile, budget, self.threads, self.progress, self.tune, self.boards),
            validation=validation,
            runnable=runnable_for(self.profile, self.threads),
            size_of=sizes_of(self.profile, self.threads),
            progress=self.progress,
        )
        runs_here = not self.profile.missing(machine_features())
        for chosen in plans.chosen:
            # Its costs were those of the whole batch.
            compiled, qdq = self.compiled(chosen.bits, chosen.reasons, whole=True)
            compiled.search = plans.made(chosen, qdq, compiled if runs_here else None)
            if compiled.search is not None:
                break
        warn_of_size(compiled, budget)
        return compiled

    def compiled(
        self, bits: Bits, reasons: Mapping[str, str], *, whole: bool = False
    ) -> tuple[CompiledModel, tvm.IRModule]:
        """Return the program for these bits, and the module with its numbers at level qdq.

        whole: compute a batch at once even if one sample after the other may be faster.
        """
        options, profile = self.options, self.profile
        chosen = quantized(
            self.model,
            self.example_inputs,
            self.calibration,
            bits=bits,
            reasons=reasons,
            ignored=options.ignored,
            requantize=options.requantize,
            observer=options.observer,
            preset=options.preset,
            strict=self.strict,
            seed=options.seed,
            one_by_one=partial(self._one_by_one, whole=whole),
            progress=self.progress,
        )
        options.require_model(chosen.plan)
        require_share(chosen.coverage, self.min_coverage)
        integer = lower(chosen.mod, chosen.numbers, progress=self.progress)
        coverage = achieved(chosen.coverage, integer, strict=self.strict)
        require_share(coverage, self.min_coverage)
        verify(integer, "integer", float_sites=float_bindings(chosen.nodes, coverage))
        built, tuned = self._built(integer, chosen.samples)
        photos = getattr(self.calibration, "preprocessing", None)
        made_by = {
            **options.told(chosen.plan, self.threads),
            "tuned": [kernel.to_json() for kernel in tuned],
            "photos": photos.to_json() if photos else None,
        }
        coverage = coverage.for_samples(chosen.samples)
        description = describe(profile, coverage, chosen.plan, chosen.numbers, chosen.seen, made_by)
        samples = random_like([t.numpy() for t in joined(chosen.batches, chosen.samples)])
        return CompiledModel(built, description, samples=samples), InsertQdq(chosen.numbers)(chosen.mod)

    def _one_by_one(self, one: tvm.IRModule, samples: int, *, whole: bool) -> bool:
        at_once = whole or self.profile.capability is not None
        return not at_once and sample_by_sample(one, samples, self.profile, self.threads)

    def _built(self, integer: tvm.IRModule, samples: int) -> tuple[Built, tuple[TunedKernel, ...]]:
        tuned: tuple[TunedKernel, ...] = ()
        threads = self.threads if samples == 1 else 1  # which then share samples, not kernels
        more: dict[str, Any] = {"threads": threads, "progress": self.progress}
        if self.tune:
            tuned = tuned_kernels(integer, self.profile, self.tune, device=self.boards, **more)
        made = build(integer, self.profile, decisions=decisions_of(tuned), **more)
        return made.for_samples(samples), tuned


def float_bindings(nodes: Nodes, coverage: Coverage) -> list[str]:
    """Return the names of the bindings that stay in float: of a chain, all; sums of what is made in floats.

    Such a sum may read what an integer site wanted stored, too.
    """
    integer = {row.site for row in coverage.rows if row.integer}
    left = [name for row in coverage.rows if not row.integer for name in nodes.by_name[row.site].bindings]
    for name, node in nodes.by_name.items():
        if node.kind in ("add", "bias", "view") and not integer.isdisjoint(node.inputs):
            integer.add(name)
        elif node.kind == "add":
            left.append(name)
    return left


def lower(mod: tvm.IRModule, numbers: Quantization, *, progress: Progress = silent) -> tvm.IRModule:
    """Return a canonical module at the integer level."""
    with step(progress, "lower"):
        return tvm.transform.Sequential([InsertQdq(numbers), LowerInteger()])(mod)


def measured_costs(
    profile: TargetProfile,
    budget: Budget,
    threads: int,
    progress: Progress,
    tune: Tune | None = None,
    boards: Device | None = None,
) -> Costs:
    """Return what prices a model's sites: measured where this machine runs the target's code.

    With tune, prices are of the decisions that it knows, or finds for the model in 8 bits, on the boards if
    there are any: half of its minutes are for that, as the kernels of all plans are those in the main.
    """
    here = measurable(profile) and budget.measure_costs
    store = open_store(budget.costs, profile, threads, measure=here)

    def costs(model: Prepared, precisions: Sequence[Precision]) -> CostTable:
        subject = Subject(model.mod, model.nodes, model.seen, model.hash, model.settings.ignored)
        decisions = NO_DECISIONS
        if tune:
            first = replace(tune, minutes=tune.minutes and tune.minutes / 2)
            if tune.trials and profile.capability is None:  # prices of GPUs are modelled, whatever is tuned
                more: dict[str, Any] = {"threads": threads, "progress": progress, "device": boards}
                tuned_kernels(uniform(subject, W8A8)[2], profile, first, **more)
            decisions = prepare(profile, tune, threads, boards).decisions
        return cost_table(
            subject, profile, precisions, store, threads=threads, measure=here, decisions=decisions,
            progress=progress,
        )  # fmt: skip

    return costs


def sizes_of(profile: TargetProfile, threads: int) -> Sizes:
    """Return what tells how many bytes the artifact of a plan takes."""

    def size(model: Prepared, plan: Plan, numbers: Quantization) -> int:
        return _file_bytes(_as_planned(model, plan, numbers, profile, threads))

    return size


def _file_bytes(compiled: CompiledModel) -> int:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.tvmq"
        compiled.save(path)
        return path.stat().st_size


def warn_of_size(compiled: CompiledModel, budget: Budget) -> None:
    """Say it if an artifact is larger than its budget after all."""
    if budget.max_size_mb is None:
        return
    megabytes = _file_bytes(compiled) / 1e6
    if megabytes > budget.max_size_mb:
        warnings.warn(
            TvmqWarning(
                f"max_size_mb={budget.max_size_mb:g}: the artifact takes {megabytes:.4g} MB, for its kernels "
                f"take more than was estimated; ask for {2 * budget.max_size_mb - megabytes:.4g}"
            ),
            stacklevel=3,
        )


def runnable_for(profile: TargetProfile, threads: int) -> Runnable | None:
    """Return what compiles a plan for `validation`, None where this machine cannot run the target's code."""
    if profile.missing(machine_features()):
        return None

    def runnable(model: Prepared, plan: Plan, numbers: Quantization) -> CompiledModel:
        return _as_planned(model, plan, numbers, profile, threads)

    return runnable


def _as_planned(
    model: Prepared, plan: Plan, numbers: Quantization, profile: TargetProfile, threads: int
) -> CompiledModel:
    built = build(lower(model.mod, numbers), profile, threads=threads)
    description = describe(profile, Coverage(()), plan, numbers, model.seen, {})
    return CompiledModel(built, description)


def describe(
    profile: TargetProfile,
    coverage: Coverage,
    plan: Plan,
    numbers: Quantization,
    calibration: Calibration,
    options: Mapping[str, Any],
) -> Description:
    """Return what an artifact tells about its making; options are those of compile."""
    made_from = {"samples": calibration.samples, "module_hash": plan.module_hash, "versions": _versions()}
    return Description(
        target=profile.name,
        profile=profile.to_toml(),
        triple=str(profile.tvm_target["mtriple"]),
        features=tuple(sorted(profile.features)),
        coverage=coverage,
        plan=plan,
        scales=numbers.scales(),
        recipe={**options, **made_from},
        calibration_hash=calibration.data_hash,
    )


def _versions() -> dict[str, str]:
    found = {"tvmq": tvmq.__version__}
    for package in ("apache-tvm", "apache-tvm-ffi", "torch", "numpy", "onnx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
