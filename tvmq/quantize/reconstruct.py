"""Let the rounding of all weights of a unit learn together what the unit's output should be.

Each weight is floor(W / s) + h with h = sigmoid(t V): V begins where that is the float weight and t grows
until every h is 0 or 1 (Nagel et al., "Up or Down? Adaptive Rounding", 2020, with annealing in place of a
penalty). Activations inside of the unit are left unrounded at random, half of them (Wei et al., "QDrop",
2022), so that the rounding fits more inputs than those of calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tvm import relax

from tvmq.formats import QuantParams
from tvmq.numerics import nearest_codes
from tvmq.quantize.lockstep import batched
from tvmq.quantize.rounding import Limits
from tvmq.quantize.units import Unit
from tvmq.reference import Interpreter

Tensor = torch.Tensor

BATCH = 16  # samples of a step
RATE = 0.02  # Adam's
COLDEST = 24.0  # t at the end: h of any V that moved is 0 or 1 to 1 %
WARM = 0.3  # of the steps, before t begins to grow
DROPPED = 0.5  # of activations left unrounded
EDGE = 0.02  # nearer than that to a whole number, V begins as if it were that far


@dataclass(slots=True)
class Rounding:
    """The weights of one site: what they are to be, and V."""

    wanted: Tensor  # float, as the site's weight is shaped
    scale: Tensor  # broadcasts to it
    limits: Limits
    settled: Callable[[Tensor], Tensor] = lambda values: values  # what is made of whole numbers in the end
    logits: Tensor = field(init=False)
    floor: Tensor = field(init=False)

    def __post_init__(self) -> None:
        steps = self.wanted / self.scale
        low, high = self.limits
        self.floor = torch.floor(steps).clamp_(low, high - 1)
        self.logits = torch.logit((steps - self.floor).clamp(EDGE, 1 - EDGE)).requires_grad_()

    def soft(self, temperature: float) -> Tensor:
        """Return the weights while they learn."""
        return (self.floor + torch.sigmoid(temperature * self.logits)) * self.scale

    def values(self) -> Tensor:
        """Return whole numbers."""
        return self.settled(self.floor + (self.logits.detach() > 0))


@dataclass(frozen=True, slots=True)
class Task:
    """One unit with its data: tensors [S, ...] of S batches."""

    unit: Unit
    source: Tensor  # the quantized stream's, as stored
    source_copy: Tensor | None  # its uint8 copy
    others: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]  # the float stream's results
    weights: tuple[Tensor, ...]  # what an error of each result counts, broadcasts to it
    storage: Mapping[str, tuple[QuantParams, ...]]  # by value's name: own, and that of a uint8 copy
    reads_copy: Callable[[str], bool]
    biases: Mapping[str, Tensor]  # by the addition's name


def reconstruct(
    task: Task,
    roundings: Mapping[str, Rounding],
    start: Mapping[str, Tensor],
    interpreter: Interpreter,
    *,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Train the roundings (by site's name) in place; return the loss of start's weights, and theirs."""
    trained = [each.logits for each in roundings.values()]
    optimizer = torch.optim.Adam(trained, lr=RATE)
    random = torch.Generator().manual_seed(seed)
    before = _loss(task, start, interpreter)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(steps):
            picked = torch.randint(len(task.source), (min(BATCH, len(task.source)),), generator=random)
            weights = {name: each.soft(_temperature(step / steps)) for name, each in roundings.items()}
            loss = _batch_loss(task, weights, interpreter, picked, DROPPED)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    whole = {name: each.values() * each.scale for name, each in roundings.items()}
    return before, _loss(task, whole, interpreter)


def _temperature(done: float) -> float:
    return 1.0 if done < WARM else math.exp(math.log(COLDEST) * (done - WARM) / (1 - WARM))


def _loss(task: Task, weights: Mapping[str, Tensor], interpreter: Interpreter) -> float:
    with torch.no_grad():
        total, samples = 0.0, len(task.source)
        for start in range(0, samples, BATCH):
            part = torch.arange(start, min(start + BATCH, samples))
            total += float(_batch_loss(task, weights, interpreter, part, 0.0)) * len(part)
        return total / samples


def _batch_loss(
    task: Task, weights: Mapping[str, Tensor], interpreter: Interpreter, picked: Tensor, dropped: float
) -> Tensor:
    copy = task.source if task.source_copy is None else task.source_copy

    def one(source: Tensor, source_copy: Tensor, others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return _run(task, weights, interpreter, source, source_copy, others, dropped)

    others = tuple(other[picked] for other in task.others)
    results = batched(one, [task.source[picked], copy[picked], others])
    losses = [
        ((found - target[picked]).square() * counted.expand_as(target)[picked]).mean()
        for found, target, counted in zip(results, task.targets, task.weights, strict=True)
    ]
    return torch.stack(losses).sum()


def _run(
    task: Task,
    weights: Mapping[str, Tensor],
    interpreter: Interpreter,
    source: Tensor,
    source_copy: Tensor,
    others: tuple[Tensor, ...],
    dropped: float,
) -> tuple[Tensor, ...]:
    """Return the unit's results for one batch, their own storage left out."""
    env: dict[relax.Var, Any] = {task.unit.source: source}
    env.update(zip(task.unit.others, others, strict=True))
    results = {str(var.name) for var in task.unit.results}
    copies: dict[relax.Var, Tensor] = {task.unit.source: source_copy}
    for step in task.unit.steps:
        name, value = step.var.name, step.value
        seen = {**env, **copies} if task.reads_copy(name) else env
        found = _value(interpreter, value, seen, weights.get(name), task.biases.get(name))
        stored = task.storage.get(name) if name not in results else None
        if stored:
            found = straight_through(found, stored[0], dropped)
            if len(stored) > 1:
                copies[step.var] = straight_through(found, stored[1], dropped)
        env[step.var] = found
    return tuple(env[var] for var in task.unit.results)


def _value(
    interpreter: Interpreter, value: Any, env: Mapping[Any, Any], weight: Tensor | None, bias: Tensor | None
) -> Any:
    if weight is None and bias is None:
        return interpreter.evaluate(value, env)
    args = [interpreter.evaluate(arg, env) for arg in value.args]
    if weight is not None:
        args[1] = weight
    else:
        args = [bias if not isinstance(arg, relax.Var) else args[i] for i, arg in enumerate(value.args)]
    return interpreter.apply(value, args)


def straight_through(value: Tensor, params: QuantParams, dropped: float) -> Tensor:
    """Return value rounded to its storage, a share of it left as it is; gradients pass where not clipped."""
    low, high = ((q - params.zero_point) * params.scale for q in (params.low, params.high))
    clipped = value.clamp(low, high)
    steps = torch.floor(clipped.detach() / params.scale + 0.5)
    if params.codes is not None:
        codes = torch.from_numpy(nearest_codes(params.codes)).float() - params.zero_point
        steps = codes[(steps + params.zero_point).long()]
    found = clipped + (steps * params.scale - clipped.detach())
    return torch.where(torch.rand_like(value) < dropped, value, found) if dropped else found


def row_weights(target: Tensor, importance: Tensor, *, image: bool) -> Tensor:
    """Return what an error in each row of results [S, ...] counts, over their energy; importance [rows]."""
    shape = [1, *target.shape[1:]]
    shape[2 if image else -1] = 1
    return importance.reshape(shape) / target.square().mean().clamp_min(1e-30)


def token_weights(target: Tensor, *, image: bool) -> Tensor:
    """Return 1 / mean square of each row [..., 1] of results, so that no token outweighs the rest.

    Of images [S, N, C, H, W] all pixels of an image count the same.
    """
    energy = target.square().mean([2, 3, 4] if image else [-1], keepdim=True)
    return torch.reciprocal(energy + energy.mean() * 0.1)
