"""The stages from a model to the numbers of its integer form, in order.

import -> canonicalize -> plan -> calibrate -> balance -> calibrate -> quantize
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import tvm

from tvmq.calibrate.balancing import balance_factors
from tvmq.calibrate.batches import GOOD_SAMPLES, Batch, as_batches, input_specs, samples_in
from tvmq.calibrate.calibration import Calibration, module_hash
from tvmq.calibrate.centring import key_biases
from tvmq.calibrate.check_inputs import data_findings
from tvmq.calibrate.collect import NONE_COUNTED, collect, images
from tvmq.calibrate.findings import Finding, announce
from tvmq.calibrate.observers import OBSERVERS
from tvmq.calibrate.rows import Rows
from tvmq.calibrate.stability import GROUPS, Stability, stability
from tvmq.errors import UsageError
from tvmq.formats import Quantization
from tvmq.frontend import import_model
from tvmq.one_thread import one_thread
from tvmq.passes.balance import Balance
from tvmq.passes.balance_groups import find_groups
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.centre_keys import CentreKeys, find_keys
from tvmq.plan.assign import NO_REASONS, Bits, as_stored, assign_precisions, coverage_of
from tvmq.plan.cost_table import FLOAT, precision_name
from tvmq.plan.formats import Formats, value_formats
from tvmq.plan.nodes import Nodes, index
from tvmq.progress import Progress, silent, step
from tvmq.quantize.choose import choose, gram_inputs, ranges
from tvmq.quantize.importance import row_importance, with_own_moments
from tvmq.quantize.model import Model
from tvmq.quantize.output_steps import CRITERIA
from tvmq.quantize.presets import DEFAULT, Preset, preset_of
from tvmq.quantize.refine import refined
from tvmq.reference import require_operators
from tvmq.samples import cut
from tvmq.spec import W8A8, Coverage, Plan, Precision

# (module of one sample, samples) -> whether they are to be computed one after the other.
OneByOne = Callable[[tvm.IRModule, int], bool]
Rewrite = Callable[[tvm.IRModule], tvm.IRModule]
REQUANTIZE = ("pot", "fixed_point")
# Balancing wants the channels' ranges relative to each other, which 16 samples settle; the second, full
# calibration sees all samples.
BALANCE_SAMPLES = 16
BALANCE_POOLED_SAMPLES = 64  # where a sample has one row of some channels
# What attention makes of the tokens of one image is much alike: of fewer images, the ranges of its channels
# come out so tight that the next image leaves them (DeiT-Ti, 2 images of noise: cosine .988, not .9995).
FEWEST_FOR_ATTENTION = 8
NO_CALIBRATION = (
    "calibration: none given, 8-bit activations need typical inputs to find their ranges; pass e.g. "
    f"calibration=[batch, ...] with {GOOD_SAMPLES} or more samples shaped like the model's input"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """A model with every number of its integer form chosen, and what they were chosen from."""

    unbalanced: tvm.IRModule  # canonical, as imported
    mod: tvm.IRModule  # canonical and balanced: what the numbers are for
    nodes: Nodes
    formats: Formats
    plan: Plan
    coverage: Coverage  # what the plan makes of each site; `achieved` tells what lowering made of it
    samples: int  # how often the program runs for one call
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
    bits: Bits = W8A8,
    reasons: Mapping[str, str] = NO_REASONS,
    ignored: str | Sequence[str] = (),
    requantize: str = "pot",
    observer: str = "mse",
    preset: str | Preset = DEFAULT,
    strict: bool = False,
    seed: int = 0,
    one_by_one: OneByOne = lambda _one, _samples: False,
    progress: Progress = silent,
) -> Quantized:
    """Run all stages from import to quantize.

    bits, reasons: as for assign_precisions; all others as for compile. one_by_one does not change numbers.
    """
    imported = _imported(model, example_inputs, progress)
    unbalanced = _canonicalized(imported, progress)
    require_operators(unbalanced)
    whole = unbalanced
    unbalanced, batches, samples = cut(whole, calibration)
    plan, formats = planned(unbalanced, ignored=patterns(ignored), bits=bits, reasons=reasons)
    coverage = coverage_of(unbalanced, plan, formats.integer, strict=strict)
    doubts = data_findings(imported, unbalanced, batches, prepared=getattr(calibration, "prepared", ""))
    announce(doubts)
    del imported  # its weights
    balance = balancing(unbalanced, batches, plan=plan, observer=observer, progress=progress)
    mod = balance(unbalanced)
    nodes = index(mod)
    formats = formats_of(nodes, plan)  # balancing gives a bias to a linear that had none
    subject = Model(mod, nodes, formats, batches)
    effort = preset_of(preset)
    grams = {} if effort.sequential else gram_inputs(nodes, formats)
    counted = with_own_moments(subject.sites()) if grams else {}
    importance = row_importance(mod, counted, batches, seed, progress)
    seen = observe(mod, formats, batches, grams, importance, progress=progress)
    stored = {name: fmt.dtype != "uint8" for name, fmt in formats.values.items()}
    stable = stability(seen, stored, method=observer, seed=seed)
    unsteady = stable.findings()
    announce(unsteady)
    chosen = Quantized(
        unbalanced=unbalanced,
        mod=mod,
        nodes=nodes,
        formats=formats,
        plan=plan,
        coverage=coverage,
        samples=samples,
        batches=batches,
        seen=seen,
        stable=stable,
        findings=(*doubts, *unsteady),
        numbers=_numbers(subject, seen, effort, observer, requantize, seed, progress),
    )
    if samples == 1 or one_by_one(unbalanced, samples):
        return chosen
    return _at_once(chosen, whole, balance(whole), strict=strict)


def _at_once(chosen: Quantized, whole: tvm.IRModule, mod: tvm.IRModule, *, strict: bool) -> Quantized:
    """Return what was chosen for one sample for a whole batch, whose sites have the same names.

    whole, mod: canonical, and balanced.
    """
    nodes = index(mod)
    formats = formats_of(nodes, chosen.plan)
    return replace(
        chosen,
        unbalanced=whole,
        mod=mod,
        nodes=nodes,
        formats=formats,
        coverage=coverage_of(whole, chosen.plan, formats.integer, strict=strict),
        samples=1,
        batches=list(as_batches(chosen.batches, input_specs(mod))),
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
    mod: tvm.IRModule,
    *,
    ignored: Sequence[str] = (),
    bits: Bits = W8A8,
    reasons: Mapping[str, str] = NO_REASONS,
) -> tuple[Plan, Formats]:
    """Return what is planned for the sites of a canonical module, and how its values are stored."""
    nodes = index(mod)
    plan = assign_precisions(nodes, module_hash(mod), ignored=ignored, bits=bits, reasons=reasons)
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


def balancing(
    mod: tvm.IRModule,
    batches: Sequence[Sequence[Any]],
    *,
    plan: Plan | None = None,
    observer: str = "mse",
    progress: Progress = silent,
) -> Rewrite:
    """Return what gives a canonical module balanced channels and centred keys: the same function.

    plan: says how many bits each site has, 8 where there is none. observer: as for compile.
    """
    groups, keys = find_groups(mod), find_keys(mod)
    if not groups and not keys:
        return _as_it_is
    pooled = any(group.pooled for group in groups)
    few = list(first_samples(batches, BALANCE_POOLED_SAMPLES if pooled else BALANCE_SAMPLES))
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
    if sum(map(samples_in, few)) < FEWEST_FOR_ATTENTION:
        kinds = index(mod).by_name
        decided = {site: each for site, each in decided.items() if kinds[site].kind == "layer_norm"}
    progress("balance", len(few) + 1, len(few) + 1)
    passes: Rewrite = tvm.transform.Sequential([CentreKeys(key_biases(mod, seen)), Balance(decided)])
    return passes


def _as_it_is(mod: tvm.IRModule) -> tvm.IRModule:
    return mod


def first_samples(batches: Iterable[Sequence[Any]], wanted: int) -> Iterator[Sequence[Any]]:
    """Yield batches until they hold so many samples."""
    samples = 0
    for batch in batches:
        yield batch
        samples += samples_in(batch)
        if samples >= wanted:
            return


def observe(
    mod: tvm.IRModule,
    formats: Formats,
    batches: Sequence[Sequence[Any]],
    grams: Mapping[str, str],
    importance: Mapping[str, torch.Tensor] = NONE_COUNTED,
    *,
    progress: Progress = silent,
) -> Calibration:
    """Run a canonical module on the batches; return what its stored values look like.

    grams: the inputs of linear sites whose second moments are wanted, by site; importance: see collect.
    """
    return collect(
        mod,
        batches,
        values=formats.values.__contains__,
        gram_inputs=grams,
        importance=importance,
        groups=GROUPS,
        progress=progress,
    )


def check_quantization(bits: Any, requantize: str, observer: str, preset: str | Preset) -> Bits:
    """Return what bits stands for; UsageError for options of the quantizer that do not exist."""
    given, effort = bits_of(bits), preset_of(preset)
    if requantize not in REQUANTIZE:
        raise UsageError(f"requantize={requantize!r} is unknown; choose one of {list(REQUANTIZE)}")
    if observer not in OBSERVERS:
        raise UsageError(f"observer={observer!r} is unknown; choose one of {sorted(OBSERVERS)}")
    if observer in CRITERIA and not (effort.sequential and effort.steps):
        raise UsageError(
            f"observer={observer!r} looks at outputs, which preset={effort.name!r} does not compute; choose "
            f"preset={DEFAULT!r}, or one of {sorted(OBSERVERS.keys() - CRITERIA.keys())}"
        )
    return given


def bits_of(bits: Any) -> Bits:
    """Return what 8, "w4a8", or a mapping of patterns to these, to "float" or to None stands for."""
    if not isinstance(bits, Mapping):
        return Precision.of(bits)
    return {str(pattern): _own_bits(own) for pattern, own in bits.items()}


def told_bits(bits: Bits) -> int | str | dict[str, str]:
    """Return what recipes call bits: 8, "w4a8", or these and "float" by pattern."""
    if isinstance(bits, Precision):
        return bits.option
    return {pattern: precision_name(own) for pattern, own in bits.items()}


def _own_bits(own: Any) -> Precision | None:
    if own is None or own == FLOAT:
        return None
    return own if isinstance(own, Precision) else Precision.of(own)


def _imported(model: Any, example_inputs: Sequence[Any] | None, progress: Progress) -> tvm.IRModule:
    with step(progress, "import"):
        return import_model(model, example_inputs)


def _canonicalized(mod: tvm.IRModule, progress: Progress) -> tvm.IRModule:
    with step(progress, "canonicalize"):
        return canonicalize(mod)


def patterns(ignored: str | Sequence[str]) -> tuple[str, ...]:
    return (ignored,) if isinstance(ignored, str) else tuple(ignored)
