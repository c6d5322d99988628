"""The stages in order: the one file that sees them all.

    import -> canonicalize -> plan -> calibrate -> balance -> calibrate -> quantize -> qdq -> integer -> build

Each stage is a function or a TVM pass that can be called by itself; what lies between two stages is an
IRModule or frozen data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import tvm

import tvmq
from tvmq.build import build
from tvmq.calibrate.balancing import balance_factors
from tvmq.calibrate.batches import GOOD_SAMPLES, Batch, as_batches, input_specs
from tvmq.calibrate.calibration import Calibration, module_hash
from tvmq.calibrate.centring import key_biases
from tvmq.calibrate.check_inputs import data_findings
from tvmq.calibrate.collect import collect, images
from tvmq.calibrate.findings import Finding, announce
from tvmq.calibrate.observers import OBSERVERS
from tvmq.calibrate.rows import Rows
from tvmq.calibrate.stability import GROUPS, Stability, stability
from tvmq.compiled import CompiledModel
from tvmq.environment import default_threads, require_linker, require_tvm
from tvmq.errors import CalibrationError, UsageError
from tvmq.formats import Quantization
from tvmq.frontend import import_model
from tvmq.golden import random_like
from tvmq.one_thread import one_thread
from tvmq.passes.balance import Balance
from tvmq.passes.balance_groups import find_groups
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.centre_keys import CentreKeys, find_keys
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.verify_level import verify
from tvmq.plan.assign import achieved, as_stored, assign_precisions, coverage_of
from tvmq.plan.formats import Formats, value_formats
from tvmq.plan.nodes import Nodes, index
from tvmq.progress import Progress, silent, step
from tvmq.quantize.choose import choose, gram_inputs, ranges
from tvmq.quantize.model import Model
from tvmq.quantize.output_steps import CRITERIA
from tvmq.quantize.presets import DEFAULT, Preset, preset_of
from tvmq.quantize.refine import refined
from tvmq.reference import require_operators
from tvmq.spec import W8A8, Coverage, Description, Plan, Precision
from tvmq.target import TargetProfile, load_profile
from tvmq.tune.options import Tune
from tvmq.tune.results import decisions_of
from tvmq.tune.tuner import prepare
from tvmq.tune.tuner import tune as tuned_kernels

REQUANTIZE = ("pot", "fixed_point")
# Balancing wants the channels' ranges relative to each other, which 16 samples settle; the second, full
# calibration sees all samples.
BALANCE_SAMPLES = 16
# What attention makes of the tokens of one image is much alike: of fewer images, the ranges of its channels
# come out so tight that the next image leaves them (DeiT-Ti, 2 images of noise: cosine .988, not .9995).
FEWEST_FOR_ATTENTION = 8
NO_CALIBRATION = (
    "calibration: none given, 8-bit activations need typical inputs to find their ranges; pass e.g. "
    f"calibration=[batch, ...] with {GOOD_SAMPLES} or more samples shaped like the model's input"
)


def compile(  # noqa: A001  (tvmq.compile, like tvm.compile; every option is the user's)
    model: Any,
    target: Any = "native",
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    bits: int | str = 8,
    ignored: str | Sequence[str] = (),
    requantize: str = "pot",
    observer: str = "mse",
    preset: str | Preset = DEFAULT,
    strict: bool = False,
    seed: int = 0,
    threads: int | None = None,
    tune: Tune | None = None,
    progress: Progress = silent,
) -> CompiledModel:
    """Return model as an integer program for target.

    model: a torch.nn.Module, a torch.export.ExportedProgram, an onnx.ModelProto, or a path to .onnx or .pt2.
    target: a profile's name or alias, a path to a profile, a tvm Target, or "native" for this CPU.
    example_inputs: what the model is called with; needed for a torch.nn.Module, else it sets the batch size.
    calibration: typical inputs, prepared as for the float model; arrays, tensors, tuples or dicts.
    bits: 8, 6 or 4 for weights and activations, or both as in "w4a8": weights 2 to 8, activations 3 to 8. The
    first and the last products keep 8, and so do tables; norms and residuals have 16.
    ignored: glob patterns of sites that stay in float ("head", "blocks.0.*").
    requantize: "pot" makes every requantize a shift; "fixed_point" uses 31-bit multipliers, for comparison.
    observer: how ranges are chosen: "mse" (least squared error), "lp" (least |error|**2.4), "aciq" (closed
    form), "kl" (entropy), "percentile" or "minmax"; or, on what each value's readers make of it, "cosine"
    (EasyQuant), "similarity" (and the ranks in attention maps) or "fisher" (gradients).
    preset: how much work goes into the numbers: "fast" (statistics alone, seconds), "default" (each site is
    solved for what it really sees, minutes) or "best" (roundings learn as well, many minutes).
    strict: refuse, with UnsupportedModelError, a model of which any site stays in float.
    seed: recorded in the artifact; every stage of this version is deterministic, on any number of cores.
    threads: how many the kernels are tiled for; all cores by default. Any number may run them.
    tune: measure on this machine which decisions make the kernels fastest, or use what a database says of
    them; None: the default decisions, whatever was measured before. The bits are the same.

    Raises UsageError, CalibrationError, UnsupportedModelError or EnvironmentMismatchError (tvmq.errors).
    """
    require_tvm()
    precision = check_quantization(bits, requantize, observer, preset)
    _check_build(threads, tune)
    if calibration is None:
        raise CalibrationError(NO_CALIBRATION)
    profile = load_profile(target)
    require_linker(str(profile.tvm_target["mtriple"]))
    threads = threads or default_threads()
    if tune:
        prepare(profile, tune, threads)  # what it refuses is said now, not after minutes of work
    chosen = quantized(
        model,
        example_inputs,
        calibration,
        bits=precision,
        ignored=ignored,
        requantize=requantize,
        observer=observer,
        preset=preset,
        strict=strict,
        seed=seed,
        progress=progress,
    )
    integer = lower(chosen.mod, chosen.numbers, progress=progress)
    coverage = achieved(chosen.coverage, integer, strict=strict)
    verify(integer, "integer", float_sites=float_bindings(chosen.nodes, coverage))
    tuned = tuned_kernels(integer, profile, tune, threads=threads, progress=progress) if tune else ()
    built = build(integer, profile, threads=threads, decisions=decisions_of(tuned), progress=progress)
    photos = getattr(calibration, "preprocessing", None)
    options = {
        "bits": precision.option,
        "ignored": list(_patterns(ignored)),
        "requantize": requantize,
        "observer": observer,
        "preset": preset_of(preset).option,
        "seed": seed,
        "threads": threads,
        "tuned": [kernel.to_json() for kernel in tuned],
        "photos": photos.to_json() if photos else None,
    }
    description = describe(profile, coverage, chosen.plan, chosen.numbers, chosen.seen, options)
    return CompiledModel(built, description, samples=random_like([t.numpy() for t in chosen.batches[0]]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """A model with every number of its integer form chosen, and what they were chosen from."""

    unbalanced: tvm.IRModule  # canonical, as imported
    mod: tvm.IRModule  # canonical and balanced: what the numbers are for
    nodes: Nodes
    formats: Formats
    plan: Plan
    coverage: Coverage  # what the plan makes of each site; `achieved` tells what lowering made of it
    batches: Sequence[Batch]
    seen: Calibration
    stable: Stability
    findings: tuple[Finding, ...]  # what looks wrong with the calibration data
    numbers: Quantization


@one_thread()
def quantized(
    model: Any,
    example_inputs: Any,
    calibration: Any,
    *,
    bits: Precision = W8A8,
    ignored: str | Sequence[str] = (),
    requantize: str = "pot",
    observer: str = "mse",
    preset: str | Preset = DEFAULT,
    strict: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Quantized:
    """Run all stages from import to quantize; everything else as for compile."""
    imported = _imported(model, example_inputs, progress)
    unbalanced = _canonicalized(imported, progress)
    require_operators(unbalanced)
    plan, formats = planned(unbalanced, ignored=_patterns(ignored), bits=bits)
    coverage = coverage_of(unbalanced, plan, formats.integer, strict=strict)
    batches = list(as_batches(calibration, input_specs(unbalanced)))
    doubts = data_findings(imported, unbalanced, batches, prepared=getattr(calibration, "prepared", ""))
    announce(doubts)
    del imported  # its weights
    mod = balanced(unbalanced, batches, plan=plan, observer=observer, progress=progress)
    nodes = index(mod)
    formats = formats_of(nodes, plan)  # balancing gives a bias to a linear that had none
    subject = Model(mod, nodes, formats, batches)
    effort = preset_of(preset)
    grams = {} if effort.sequential else gram_inputs(nodes, formats)
    seen = observe(mod, formats, batches, grams, progress=progress)
    stored = {name: fmt.dtype != "uint8" for name, fmt in formats.values.items()}
    stable = stability(seen, stored, method=observer, seed=seed)
    unsteady = stable.findings()
    announce(unsteady)
    return Quantized(
        unbalanced=unbalanced,
        mod=mod,
        nodes=nodes,
        formats=formats,
        plan=plan,
        coverage=coverage,
        batches=batches,
        seen=seen,
        stable=stable,
        findings=(*doubts, *unsteady),
        numbers=_numbers(subject, seen, effort, observer, requantize, seed, progress),
    )


def _numbers(
    model: Model,
    seen: Calibration,
    effort: Preset,
    observer: str,
    requantize: str,
    seed: int,
    progress: Progress,
) -> Quantization:
    """Return what insert_qdq needs."""
    nodes, formats = model.nodes, model.formats
    if not effort.sequential:
        return choose(nodes, formats, seen, method=observer, requantize=requantize, progress=progress)
    return refined(
        model,
        ranges(nodes, formats, seen, method=observer),
        effort,
        power_of_two=requantize == "pot",
        seed=seed,
        observer=observer,
        progress=progress,
    )


def planned(
    mod: tvm.IRModule, *, ignored: Sequence[str] = (), bits: Precision = W8A8
) -> tuple[Plan, Formats]:
    """Return what is planned for the sites of a canonical module, and how its values are stored."""
    nodes = index(mod)
    plan = assign_precisions(nodes, module_hash(mod), ignored=ignored, bits=bits)
    formats = formats_of(nodes, plan)
    return as_stored(plan, nodes, formats), formats


def canonical(
    model: Any, example_inputs: Sequence[Any] | None = None, *, progress: Progress = silent
) -> tvm.IRModule:
    """Return a model at level canonical; model and example_inputs as for compile."""
    return _canonicalized(_imported(model, example_inputs, progress), progress)


def formats_of(nodes: Nodes, plan: Plan) -> Formats:
    """Return how every value of a canonical module is stored under a plan."""
    planned = {site.site: site.precision for site in plan.sites if site.precision is not None}
    return value_formats(nodes, planned.__contains__, planned)


def float_bindings(nodes: Nodes, coverage: Coverage) -> list[str]:
    """Return the names of the bindings that stay in float: of a chain, all."""
    return [name for row in coverage.rows if not row.integer for name in nodes.by_name[row.site].bindings]


def balanced(
    mod: tvm.IRModule,
    batches: Sequence[Sequence[Any]],
    *,
    plan: Plan | None = None,
    observer: str = "mse",
    progress: Progress = silent,
) -> tvm.IRModule:
    """Return a canonical module with balanced channels and centred keys: the same function.

    plan: says how many bits each site has, 8 where there is none. observer: as for compile.
    """
    groups, keys = find_groups(mod), find_keys(mod)
    if not groups and not keys:
        return mod
    few = list(first_samples(batches, BALANCE_SAMPLES))
    rows = Rows([group.value for group in groups], images(mod), batches=len(few))
    seen = collect(
        mod,
        few,
        values=lambda _name: False,
        gram_inputs={key.site: key.source for key in keys},
        also=rows.observe,
        progress=lambda _stage, done, total: progress("balance", done, total + 1),
    )
    precisions = {site.site: site.precision for site in plan.sites} if plan else {}
    decided = balance_factors(mod, rows, precisions=precisions, method=observer)
    if sum(len(batch[0]) if batch[0].ndim else 1 for batch in few) < FEWEST_FOR_ATTENTION:
        kinds = index(mod).by_name
        decided = {site: each for site, each in decided.items() if kinds[site].kind == "layer_norm"}
    result = tvm.transform.Sequential([CentreKeys(key_biases(mod, seen)), Balance(decided)])(mod)
    progress("balance", len(few) + 1, len(few) + 1)
    return result


def first_samples(batches: Iterable[Sequence[Any]], wanted: int) -> Iterator[Sequence[Any]]:
    """Yield batches until they hold so many samples."""
    samples = 0
    for batch in batches:
        yield batch
        samples += len(batch[0]) if batch[0].ndim else 1
        if samples >= wanted:
            return


def observe(
    mod: tvm.IRModule,
    formats: Formats,
    batches: Sequence[Sequence[Any]],
    grams: Mapping[str, str],
    *,
    progress: Progress = silent,
) -> Calibration:
    """Run a canonical module on the batches; return what its stored values look like.

    grams: the inputs of linear sites whose second moments are wanted, by site.
    """
    stored = formats.values.__contains__
    return collect(mod, batches, values=stored, gram_inputs=grams, groups=GROUPS, progress=progress)


def lower(mod: tvm.IRModule, numbers: Quantization, *, progress: Progress = silent) -> tvm.IRModule:
    """Return a canonical module at the integer level."""
    with step(progress, "lower"):
        return tvm.transform.Sequential([InsertQdq(numbers), LowerInteger()])(mod)


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
        features=tuple(sorted(profile.features)),
        coverage=coverage,
        plan=plan,
        scales=numbers.scales(),
        recipe={**options, **made_from},
        calibration_hash=calibration.data_hash,
    )


def check_quantization(bits: int | str, requantize: str, observer: str, preset: str | Preset) -> Precision:
    """Return the widths that bits stands for; UsageError for options of the quantizer that do not exist."""
    precision, effort = Precision.of(bits), preset_of(preset)
    if requantize not in REQUANTIZE:
        raise UsageError(f"requantize={requantize!r} is unknown; choose one of {list(REQUANTIZE)}")
    if observer not in OBSERVERS:
        raise UsageError(f"observer={observer!r} is unknown; choose one of {sorted(OBSERVERS)}")
    if observer in CRITERIA and not (effort.sequential and effort.steps):
        raise UsageError(
            f"observer={observer!r} looks at outputs, which preset={effort.name!r} does not compute; choose "
            f"preset={DEFAULT!r}, or one of {sorted(OBSERVERS.keys() - CRITERIA.keys())}"
        )
    return precision


def _check_build(threads: int | None, tune: Tune | None) -> None:
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads!r}: at least 1 is wanted; leave it out to use all cores")
    if tune is not None and not isinstance(tune, Tune):
        raise UsageError(f"tune={tune!r}: a tvmq.Tune is wanted, e.g. tune=tvmq.Tune(trials=32)")


def _imported(model: Any, example_inputs: Sequence[Any] | None, progress: Progress) -> tvm.IRModule:
    with step(progress, "import"):
        return import_model(model, example_inputs)


def _canonicalized(mod: tvm.IRModule, progress: Progress) -> tvm.IRModule:
    with step(progress, "canonicalize"):
        return canonicalize(mod)


def _patterns(ignored: str | Sequence[str]) -> tuple[str, ...]:
    return (ignored,) if isinstance(ignored, str) else tuple(ignored)


def _versions() -> dict[str, str]:
    found = {"tvmq": tvmq.__version__}
    for package in ("apache-tvm", "apache-tvm-ffi", "torch", "numpy", "onnx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
