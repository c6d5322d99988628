"""How much the model's output changes with each row of a site's output: a token's, a pixel's.

The squared error of the outputs for a small error e at a site is |J e|^2; averaged over random signs r, the
gradient of r . output squares to the diagonal of J^T J (Hutchinson's estimate of the Gauss-Newton matrix;
Yuan et al., "PTQ4ViT", 2022, section 3.3, has the gradients of a loss in their place). Averaged over channels
and samples it says which rows an error may fall on: in the last block of a vision transformer whose class
token is read, hardly any other counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tvm
from tvm import relax

from tvmq.calibrate.batches import samples_in
from tvmq.calibrate.collect import images
from tvmq.passes.rebuild import bindings
from tvmq.plan.nodes import Node
from tvmq.progress import Progress, silent
from tvmq.quantize.lockstep import batched, evenly
from tvmq.reference import Interpreter

Tensor = torch.Tensor

SAMPLES = 32  # whose gradients are averaged
CHUNK = 4  # samples whose gradients are computed together
WIDEST_OF_OWN = 4096  # inputs
LEAST = 0.02  # of the mean: what a row counts at least


def row_importance(
    mod: tvm.IRModule,
    wanted: Mapping[str, Node],
    batches: Sequence[Sequence[Tensor]],
    seed: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Return the weight of each row of each node's value, [rows] of mean 1, as moments.py counts them."""
    pixels = images(mod)
    size = samples_in(batches[0])
    found = {}
    for name, total in squared_gradients(mod, wanted, batches, seed, progress).items():
        convolved = wanted[name].kind in ("conv2d", "depthwise", "conv2d_transpose")
        image = convolved or (wanted[name].kind != "linear" and name in pixels)
        found[name] = _rows(total, 1 if image else total.ndim - 1, size)
    return found


def with_own_moments(sites: Mapping[str, Node]) -> dict[str, Node]:
    """Return the linears among these whose inputs may each have moments of its own.

    Those of wider ones are shared by all readers: at 4096 inputs a matrix takes 64 MiB.
    """
    linears = {name: node for name, node in sites.items() if node.kind == "linear"}
    return {n: node for n, node in linears.items() if int(node.call.args[1].ty.shape[0]) <= WIDEST_OF_OWN}


def shown_rows(
    mod: tvm.IRModule,
    wanted: Mapping[str, Node],
    batches: Sequence[Sequence[Tensor]],
    seed: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Return which rows of each node's value count in each batch, [S, rows] of 0 and 1.

    A row is hidden where the output does not depend on it, as on padding behind a mask; one that no batch
    shows has its weight from row_importance. Empty for a model of one float input, which holds no mask.
    """
    params = mod["main"].params
    if len(params) == 1 and str(params[0].ty.dtype).startswith("float"):
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for done, batch in enumerate(batches, start=1):
        for name, total in squared_gradients(mod, wanted, [batch], seed).items():
            channels = total.ndim - 1 if wanted[name].kind == "linear" else 1
            found[name].append((total.sum(channels).reshape(-1) > 0).float())
        progress("mask", done, len(batches))
    rows = {name: torch.stack(each) for name, each in found.items() if each}
    return {name: torch.where(each.any(0), each, 1.0) for name, each in rows.items()}


def squared_gradients(
    mod: tvm.IRModule,
    wanted: Mapping[str, Node],
    batches: Sequence[Sequence[Tensor]],
    seed: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Return the diagonal of J^T J for each node's value, shaped as it is, summed over samples."""
    if not wanted or not _output_shapes(mod["main"]):  # nothing to ask for, or outputs without a slope
        return {}
    main, interpreter = mod["main"], Interpreter(mod)
    shapes = {name: node.shape for name, node in wanted.items()}
    random = torch.Generator().manual_seed(seed)
    totals = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def probed(inputs: tuple[Tensor, ...], probes: tuple[Tensor, ...], signs: tuple[Tensor, ...]) -> Tensor:
        moved = dict(zip(shapes, probes, strict=True))
        return _signed_output(main, interpreter, inputs, moved, signs)

    size = samples_in(batches[0])
    chunk = max(1, CHUNK // size)
    used = evenly(batches, max(1, SAMPLES // size))
    progress("importance", 0, len(used))
    for start in range(0, len(used), chunk):
        part = used[start : start + chunk]
        inputs = tuple(torch.stack(each) for each in zip(*part, strict=True))
        probes = tuple(torch.zeros(len(part), *shape, requires_grad=True) for shape in shapes.values())
        signs = tuple(
            torch.randint(0, 2, (len(part), *shape), generator=random) * 2.0 - 1
            for shape in _output_shapes(main)
        )
        with torch.enable_grad():
            total = batched(probed, [inputs, probes, signs]).sum()
            grads = torch.autograd.grad(total, probes, allow_unused=True)
        for name, grad in zip(shapes, grads, strict=True):
            if grad is not None:
                totals[name] += grad.square().sum(0)
        progress("importance", start + len(part), len(used))
    return totals


def _signed_output(
    main: relax.Function,
    interpreter: Interpreter,
    inputs: tuple[Tensor, ...],
    moved: Mapping[str, Tensor],
    signs: tuple[Tensor, ...],
) -> Tensor:
    """Return the sum of the outputs times signs, with something added to some values on the way."""
    env: dict[relax.Var, Any] = dict(zip(main.params, inputs, strict=True))
    for step in bindings(main):
        value = interpreter.evaluate(step.value, env)
        name = step.var.name
        env[step.var] = value + moved[name] if name in moved else value
    found = interpreter.evaluate(main.body.body, env)
    found = found if isinstance(found, tuple) else (found,)
    floats = [value for value in found if value.dtype == torch.float32]
    parts = [(value * sign).sum() for value, sign in zip(floats, signs, strict=True)]
    return torch.stack(parts).sum()


def _output_shapes(main: relax.Function) -> list[tuple[int, ...]]:
    ty = main.ret_ty
    fields = ty.fields if isinstance(ty, relax.TupleType) else [ty]
    return [tuple(int(d) for d in f.shape) for f in fields if str(f.dtype) == "float32"]


def _rows(total: Tensor, channels: int, batch: int) -> Tensor:
    """Return weights [rows] of mean 1 from squared gradients, whose axis `channels` is.

    The samples of a batch are alike: what differs between them is chance.
    """
    rows = total.mean(channels).reshape(-1)
    if len(rows) % batch == 0:
        rows = rows.reshape(batch, -1).mean(0).repeat(batch)
    mean = rows.mean()
    if not float(mean) > 0:
        return torch.ones_like(rows)
    return rows.clamp_min(LEAST * mean) / rows.clamp_min(LEAST * mean).mean()
