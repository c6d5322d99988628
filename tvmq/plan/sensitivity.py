"""Predict what the model loses when one group of sites has fewer bits: several measures, one interface.

Every measure takes a Subject and gives a loss by group and precision, a mean over samples. What is perturbed
is the same for all: inputs of the group's sites are rounded as they will be stored, weights and biases are
those of a quantization of the whole model to that precision.

`output` runs the model from the group on and compares outputs: divergence.py. All others look at the error dY
of the group's own outputs:

    projected   (g . dY)**2 / 2    g: the gradient of log p(class), the class drawn from p (for other outputs:
                                   of outputs times random signs). To second order the mean is `output`'s
                                   divergence, with all correlations between channels and rows
    fisher      sum(g**2 dY**2) / 2    its diagonal: Fisher-weighted error
    pooled      `fisher` times what `projected` is of it, in the geometric mean over a group's precisions of
                fewer than 8 bits: one number of few samples is chance, several of one group agree on how much
                its errors count, and `fisher` hardly varies in how large they are. (ViT-S/14, 32 samples,
                against the divergence on 100 others, 4 bits: rank correlation .968, of `projected` .940)
    hessian     trace(H) / n |dW|**2    HAWQ-V2; the trace of the Gauss-Newton matrix over weights, by probing
    nuclear     |Y|_* |dY|**2           Liu et al., "Post-Training Quantization for Vision Transformer", 2021
    sqnr        |dY|**2 / |Y|**2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm

from tvmq.calibrate.batches import samples_in
from tvmq.errors import UsageError
from tvmq.formats import Quantization, QuantParams
from tvmq.one_thread import one_thread
from tvmq.passes.rebuild import bindings, used_vars
from tvmq.plan.cost_table import FLOAT, precision_of
from tvmq.plan.divergence import divergence, random_loss
from tvmq.plan.groups import SiteGroup
from tvmq.plan.nodes import MULTIPLYING, Nodes
from tvmq.progress import Progress, silent
from tvmq.reference import Interpreter
from tvmq.spec import W8A8

Tensor = torch.Tensor
Losses = dict[tuple[str, str], float]  # by group and precision's name
Env = Mapping[Any, Any]  # values by variable


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A canonical module, groups of its sites, its numbers in each precision, and samples."""

    mod: tvm.IRModule
    nodes: Nodes
    groups: Sequence[SiteGroup]
    numbers: Mapping[str, Quantization]  # of all sites at once, by precision's name
    batches: Sequence[Sequence[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """What a measure of one site's own error sees of one batch; gradients only if it asked for them."""

    exact: Tensor
    error: Tensor
    channels: int  # the axis of them
    gradient: Tensor | None
    samples: int  # of the model's batch; the first axis of a site may count windows or tokens too
    weight_error: float  # mean square
    weight_gradient: float  # square sum


@one_thread()
def sensitivities(subject: Subject, measure: str, *, seed: int = 0, progress: Progress = silent) -> Losses:
    """Return the loss of each group in each of its precisions but float, by one of MEASURES."""
    if measure not in MEASURES:
        raise UsageError(f"measure={measure!r} is unknown; choose one of {sorted(MEASURES)}")
    chosen = MEASURES[measure]
    totals: Losses = {
        (group.name, name): 0.0 for group in subject.groups for name in group.choices if name != FLOAT
    }
    walker, random = _Walker(subject), torch.Generator().manual_seed(seed)
    scales = dict(totals)
    samples = 0
    progress("sensitivity", 0, len(subject.batches))
    for done, batch in enumerate(subject.batches, start=1):
        found = walker.outputs(batch) if chosen is None else walker.local(batch, chosen, random)
        for at, loss, scale in found:
            totals[at] += loss
            scales[at] += scale
        samples += samples_in(batch)
        progress("sensitivity", done, len(subject.batches))
    if chosen is not None and chosen.scale is not None:
        totals = _pooled(totals, scales)
    return {at: total / max(samples, 1) for at, total in totals.items()}


def _pooled(measured: Losses, scales: Losses) -> Losses:
    """Return scales times how much each group's errors count, by all its precisions of few bits together."""
    logs: dict[str, list[float]] = {}
    for (group, name), loss in measured.items():
        if _has_few_bits(name) and min(loss, scales[group, name]) > 0:
            logs.setdefault(group, []).append(math.log(loss / scales[group, name]))
    return {
        at: scales[at] * math.exp(sum(logs[at[0]]) / len(logs[at[0]]))
        if _has_few_bits(at[1]) and at[0] in logs and scales[at] > 0
        else loss
        for at, loss in measured.items()
    }


def _has_few_bits(name: str) -> bool:
    precision = precision_of(name)
    return precision is not None and precision.weight_bits < W8A8.weight_bits


@dataclass(frozen=True, slots=True)
class _Measure:
    """A group's loss from the local errors of its sites."""

    loss: Callable[[Sequence[Local]], float]
    gradients: bool = False
    scale: Callable[[Sequence[Local]], float] | None = None  # losses are pooled in proportion to it


def _projected(sites: Sequence[Local]) -> float:
    each = [
        _by_sample(site.gradient * site.error, site.samples) for site in sites if site.gradient is not None
    ]
    return float(torch.stack(each).sum(0).square().sum()) / 2 if each else 0.0


def _by_sample(value: Tensor, samples: int) -> Tensor:
    """Return sums [samples]; equal shares of the whole sum where samples do not divide the value."""
    if value.numel() % samples:
        return (value.sum() / samples).expand(samples)
    return value.reshape(samples, -1).sum(1)


def _fisher(sites: Sequence[Local]) -> float:
    return sum(
        float((site.gradient * site.error).square().sum()) / 2 for site in sites if site.gradient is not None
    )


def _hessian(sites: Sequence[Local]) -> float:
    return sum(site.weight_gradient * site.weight_error for site in sites) / 2


def _nuclear(sites: Sequence[Local]) -> float:
    total = 0.0
    for site in sites:
        rows = site.exact.movedim(site.channels, -1).flatten(0, -2)
        total += float(torch.linalg.svdvals(rows).sum()) * float(site.error.square().sum())
    return total


def _sqnr(sites: Sequence[Local]) -> float:
    return sum(
        site.samples * float(site.error.square().sum() / site.exact.square().sum().clamp_min(1e-30))
        for site in sites
    )


# None: by running the model. The cheapest that ranks well is the default.
MEASURES: Mapping[str, _Measure | None] = {
    "output": None,
    "projected": _Measure(_projected, gradients=True),
    "fisher": _Measure(_fisher, gradients=True),
    "pooled": _Measure(_projected, gradients=True, scale=_fisher),
    "hessian": _Measure(_hessian, gradients=True),
    "nuclear": _Measure(_nuclear),
    "sqnr": _Measure(_sqnr),
}
DEFAULT = "pooled"
OF_ERRORS = ("nuclear", "sqnr")  # those that look at no output
PROBES = 4  # gradients of each batch


class _Walker:
    """Evaluates a module's bindings, some of them perturbed."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._main = subject.mod["main"]
        self._interpreter = Interpreter(subject.mod)
        self._steps = list(bindings(self._main))
        self._at = {str(step.var.name): step for step in self._steps}
        self._bias_of = {
            node.inputs[0]: name for name, node in subject.nodes.by_name.items() if node.kind == "bias"
        }

    def outputs(self, batch: Sequence[Tensor]) -> Iterator[tuple[tuple[str, str], float, float]]:
        """Yield the divergence of the model's output for every group and precision."""
        with torch.no_grad():
            exact = self._interpreter.values(self._main, list(batch), None)
            wanted = self._result(exact)
            for group in self._subject.groups:
                after = self._after(group)
                for precision in group.choices:
                    if precision != FLOAT:
                        found = self._result(self._perturbed(group, precision, after, exact))
                        yield (group.name, precision), divergence(wanted, found), 0.0

    def local(
        self, batch: Sequence[Tensor], measure: _Measure, random: torch.Generator
    ) -> Iterator[tuple[tuple[str, str], float, float]]:
        """Yield the loss by a measure of local errors for every group and precision, and its scale."""
        with torch.no_grad():
            exact = self._interpreter.values(self._main, list(batch), None)
        probes = PROBES if measure.gradients else 1
        gradients = [self._gradients(batch, random) if measure.gradients else ({}, {}) for _ in range(probes)]
        samples = samples_in(batch)
        for group in self._subject.groups:
            for precision in group.choices:
                if precision == FLOAT:
                    continue
                with torch.no_grad():
                    errors = {site: self._error(site, precision, exact) for site in group.sites}
                    for values, weights in gradients:
                        sites = [
                            Local(
                                exact[self._at[site].var],
                                error,
                                self._channels(site, error),
                                values.get(site),
                                samples,
                                self._weight_error(site, precision),
                                weights.get(site, 0.0),
                            )
                            for site, error in errors.items()
                        ]
                        scale = measure.scale(sites) / probes if measure.scale else 0.0
                        yield (group.name, precision), measure.loss(sites) / probes, scale

    def _after(self, group: SiteGroup) -> list[Any]:
        """Return the steps that a group's results reach, itself left out; graph order."""
        reached = {self._at[site].var for site in group.sites}
        found = []
        for step in self._steps:
            if step.var in reached or reached.intersection(used_vars(step.value)):
                reached.add(step.var)
                found.append(step)
        return found

    def _perturbed(self, group: SiteGroup, precision: str, after: Sequence[Any], exact: Env) -> Env:
        env = dict(exact)
        biases = {self._bias_of[site] for site in group.sites if site in self._bias_of}
        for step in after:
            name = str(step.var.name)
            if name in group.sites:
                env[step.var] = self._rounded(name, precision, env)
            elif name in biases:
                env[step.var] = self._interpreter.evaluate(step.value, env) + self._bias_error(
                    name, precision
                )
            else:
                env[step.var] = self._interpreter.evaluate(step.value, env)
        return env

    def _rounded(self, site: str, precision: str, env: Env) -> Tensor:
        """Return what a site gives for rounded inputs, and its rounded weight."""
        nodes, numbers = self._subject.nodes, self._subject.numbers[precision]
        node = nodes.by_name[site]
        seen = dict(env)
        copy = site in numbers.uint8_readers
        for var in {v for name in node.bindings for v in used_vars(self._at[name].value)}:
            name = str(var.name)
            params = _stored(nodes, name, numbers, copy=copy) if name in node.inputs else None
            if params is not None:
                seen[var] = stored_as(env[var], params)
        for name in node.bindings:
            step = self._at[name]
            if node.kind in MULTIPLYING and site in numbers.weights:
                source = self._interpreter.evaluate(step.value.args[0], seen)
                args = [source, self._weight(site, precision), *step.value.args[2:]]
                seen[step.var] = self._interpreter.apply(step.value, args)
            else:
                seen[step.var] = self._interpreter.evaluate(step.value, seen)
        value: Tensor = seen[self._at[site].var]
        return value

    def _error(self, site: str, precision: str, exact: Env) -> Tensor:
        """Return the error of a site's result, that of its bias included."""
        error: Tensor = self._rounded(site, precision, exact) - exact[self._at[site].var]
        bias = self._bias_of.get(site)
        return error if bias is None else error + self._bias_error(bias, precision)

    def _weight(self, site: str, precision: str) -> Tensor:
        found = self._subject.numbers[precision].weights[site]
        values, scale = torch.from_numpy(found.values).float(), torch.from_numpy(found.scale)
        node = self._subject.nodes.by_name[site]
        axis = {"linear": values.ndim - 1, "conv2d_transpose": 1}.get(node.kind, 0)
        return values * scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])

    def _weight_error(self, site: str, precision: str) -> float:
        if site not in self._subject.numbers[precision].weights:
            return 0.0
        exact = self._interpreter.evaluate(self._at[site].value.args[1], {})
        return float((self._weight(site, precision) - exact).square().mean())

    def _bias_error(self, bias: str, precision: str) -> Tensor | float:
        found = self._subject.numbers[precision].biases.get(bias)
        if found is None:
            return 0.0
        args = self._at[bias].value.args
        constant = next(arg for arg in args if isinstance(arg, tvm.ir.GenericConst))
        error: Tensor = torch.from_numpy(found).float() - self._interpreter.evaluate(constant, {})
        return error

    def _channels(self, site: str, value: Tensor) -> int:
        kind = self._subject.nodes.by_name[site].kind
        return 1 if kind in MULTIPLYING and kind != "linear" else value.ndim - 1

    def _gradients(
        self, batch: Sequence[Tensor], random: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the gradients of a random loss: of sites' results, and the squares of those of weights."""
        nodes = self._subject.nodes.by_name
        sites = {site for group in self._subject.groups for site in group.sites}
        moved: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        env: dict[Any, Any] = dict(zip(self._main.params, batch, strict=True))
        with torch.enable_grad():
            for step in self._steps:
                name = str(step.var.name)
                if name in sites and nodes[name].kind in MULTIPLYING:
                    call = step.value
                    weights[name] = self._interpreter.evaluate(call.args[1], env).clone().requires_grad_()
                    source = self._interpreter.evaluate(call.args[0], env)
                    value = self._interpreter.apply(call, [source, weights[name], *call.args[2:]])
                else:
                    value = self._interpreter.evaluate(step.value, env)
                if name in sites:
                    moved[name] = torch.zeros_like(value, requires_grad=True)
                    value = value + moved[name]
                env[step.var] = value
            loss = random_loss(self._result(env), random)
            grads = torch.autograd.grad(loss, [*moved.values(), *weights.values()], allow_unused=True)
        of_values = dict(zip(moved, grads, strict=False))
        of_weights = dict(zip(weights, grads[len(moved) :], strict=True))
        return (
            {name: grad for name, grad in of_values.items() if grad is not None},
            {name: float(grad.square().sum()) for name, grad in of_weights.items() if grad is not None},
        )

    def _result(self, env: Env) -> tuple[Tensor, ...]:
        found = self._interpreter.evaluate(self._main.body.body, env)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(value for value in found if value.dtype == torch.float32)


def stored_as(value: Tensor, params: QuantParams) -> Tensor:
    """Return value as its storage holds it, in floats."""
    steps = torch.floor(value / params.scale + 0.5) + params.zero_point
    return (steps.clamp_(params.low, params.high) - params.zero_point) * params.scale


def _stored(nodes: Nodes, name: str, numbers: Quantization, *, copy: bool) -> QuantParams | None:
    """Return how a value is stored, views looked through; None if it is not."""
    while name not in numbers.values:
        node = nodes.by_name.get(name)
        if node is None or node.kind != "view" or not node.inputs:
            return None
        name = node.inputs[0]
    return numbers.also_uint8.get(name, numbers.values[name]) if copy else numbers.values[name]
