"""Whether a batch is computed sample by sample: what its values and its weights cost to move, estimated.

Of a whole batch, weights are fetched once; sample by sample, values that a batch would push out of the
second cache level stay there (ResNet-50, batch 8, one core of a Zen 4: 177 ms at once, 8 times 18.6 ms).
Estimates alone decide, for a target and its threads, never what is computed: numbers are those of one sample.
"""

from __future__ import annotations

import math

import tvm

from tvmq.cost.roofline import CALL_US, RUN_US, bandwidths, constants_from, level_of, macs_per_cycle
from tvmq.passes.rebuild import Expr, bindings, operands, shape_of
from tvmq.sites import sites
from tvmq.target import TargetProfile

CALLER_US = 20.0  # what one more call of the program costs besides RUN_US
TRUNK_BYTES, PLAIN_BYTES = 2, 1  # of a number that is added to another, and of the others


def sample_by_sample(one: tvm.IRModule, samples: int, profile: TargetProfile, threads: int) -> bool:
    """Whether so many samples are done sooner one after the other, each thread with its own, than at once.

    one: the canonical module of one sample.
    """
    turns = math.ceil(samples / threads)
    return turns * batch_us(one, 1, profile) < batch_us(one, samples, profile) / threads


def batch_us(one: tvm.IRModule, samples: int, profile: TargetProfile) -> float:
    """Return the microseconds that one core needs for a batch, apart from what no batch changes."""
    machine, rates = profile.machine, bandwidths(profile.machine)
    macs = {site.id: site.macs for site in sites(one)}
    peak = machine.clock_ghz * 1e3 * macs_per_cycle(profile, integer=True)
    weights = {b.var.name: _constants(b.value) for b in bindings(one["main"])}
    source = rates[constants_from(sum(weights.values()), machine)] * 1e3
    spent = CALLER_US + RUN_US + CALL_US * len(macs)
    for binding in bindings(one["main"]):
        name = str(binding.var.name)
        spent += max(samples * macs.get(name, 0) / peak, weights[name] / source)
        width = TRUNK_BYTES if _is_add(name, binding.value) else PLAIN_BYTES
        size = samples * width * math.prod(shape_of(binding.var) or ())
        if name in macs and (level := level_of(2 * size, machine)) not in ("l1", "l2"):
            spent += 2 * size / (rates[level] * 1e3)  # written, and read again
    return spent


def _constants(expr: Expr) -> float:
    """Return the bytes of an expression's constants, in 8 bits."""
    found = (leaf for leaf in operands(expr) if isinstance(leaf, tvm.ir.GenericConst))
    return float(sum(math.prod(shape_of(leaf) or ()) for leaf in found))


def _is_add(name: str, expr: Expr) -> bool:
    op = getattr(getattr(expr, "op", None), "name", "")
    return op == "relax.add" and not name.endswith(".bias")
