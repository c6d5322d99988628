"""What an attention adds to its scores: a constant, and a mask that hides keys.

    attention_bias(q, k, v, bias) with bias = constant, where(seen, 0, lowest), or the sum of both

is the form that raise_attention gives every bias whose parts it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmq import numerics
from tvmq.passes.constants import Array, array_of, scalar_of
from tvmq.passes.rebuild import Expr, op_name, shape_of

# Added to a score, this or less takes its weight to 0 where its row has a key that is seen: exp(-104) is 0 in
# float32 already. A row that sees none is zero in integers, in float only with -inf and its guard: a finite
# number added to all scores of a row hides nothing.
HIDES = -1000.0
# Biases that differ by less than this, in nats, are one: a hundredth of the step that they are rounded to.
SAME = 0.01 * math.log(2) / numerics.STEPS_PER_OCTAVE

Int16s = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTerms:
    """constant: [B or 1, H or 1, T or 1, S or 1]; seen: a boolean [B or 1, 1, T or 1, S], false hides."""

    constant: Array | None = None
    seen: Expr | None = None


def score_terms(value_of: Callable[[Expr], Expr], bias: Expr | None) -> ScoreTerms | None:
    """Return the parts of a bias; None where it has others. value_of: what a variable is bound to."""
    if bias is None:
        return ScoreTerms()
    array = array_of(bias)
    if array is not None:
        return ScoreTerms(array)
    value = value_of(bias)
    if op_name(value) == "where":
        return _choice(value)
    if op_name(value) != "add":
        return None
    parts = [score_terms(value_of, arg) for arg in value.args]
    constants = [p.constant for p in parts if p is not None and p.constant is not None]
    seen = [p.seen for p in parts if p is not None and p.seen is not None]
    return ScoreTerms(constants[0], seen[0]) if len(constants) == len(seen) == 1 else None


def _choice(where: Expr) -> ScoreTerms | None:
    shape, hides = shape_of(where), scalar_of(where.args[2])
    if shape is None or len(shape) != 4 or shape[1] != 1 or shape_of(where.args[0]) != shape:
        return None
    if scalar_of(where.args[1]) != 0.0 or hides is None or not hides <= HIDES:
        return None
    return ScoreTerms(seen=where.args[0])


def logit_biases(constant: Array | None, shape: tuple[int, int, int, int]) -> tuple[Int16s, ...]:
    """Return the biases of numerics.attention that add a constant to scores of shape [B, H, T, S].

    What repeats along the batch is kept once; what differs between batches in one way for all heads is a bias
    of its own: position biases [1, H, T, S] and window masks [P, 1, T, S], not their product.
    """
    if constant is None:
        return ()
    _, _, queries, keys = shape
    bias = np.broadcast_to(constant, (*constant.shape[:-2], queries, keys)).astype(np.float64)
    bias = np.maximum(_period(bias.reshape((1,) * (4 - bias.ndim) + bias.shape)), _least())
    if len(bias) > 1 and bias.shape[1] > 1:
        base = bias.max(0, keepdims=True)
        rest = bias - base
        window = rest.max(1, keepdims=True)
        differ = np.where(window > _least() / 2, window - rest.min(1, keepdims=True), 0.0)
        if differ.max() <= SAME:
            return numerics.logit_bias(base), numerics.logit_bias(window)
    return (numerics.logit_bias(bias),)


def _least() -> float:
    return -(2**15) / numerics.STEPS_PER_OCTAVE * math.log(2)


def _period(bias: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the first entries along axis 0 of which all are repetitions."""
    count = len(bias)
    for period in range(1, count):
        if count % period == 0 and (bias[period:] == bias[:-period]).all():
            return bias[:period]
    return bias
