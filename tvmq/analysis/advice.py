"""Say, from evidence alone, what would make a site's error smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmq.analysis.records import Closeness, Spread

INHERITED_DB = 6.0  # together that much worse than alone: the error came with the inputs
DOMINANT_DB = 3.0  # one of two causes makes twice the error of the other
GOOD_DB = 45.0  # a site alone: more than 8 bits usually give
FAIR_DB = 30.0  # what 8 bits give where nothing is wrong
CLIPPING = 0.3  # of the squared error
OUTLIERS = 4.0  # largest value over the 99.9th percentile; of a normal distribution 1.5
UNEVEN = 16.0  # widest channel over the median one
BALANCED = 0.8  # balancing that narrowed them less has not reached this site
MOVES = 0.10  # as calibrate.stability.LARGE_MOVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one site in integers."""

    together: Closeness
    alone: Closeness
    weights_db: float | None
    inputs_db: float | None
    reads: Spread | None
    gives: Spread | None
    channels_before: Sequence[float]
    channels_after: Sequence[float]
    upstream: str  # the site that it reads, "" if it reads an input of the model


def advice(evidence: Evidence) -> str:
    """Return what would help, in one or two clauses with the numbers that say so; "" where all is well."""
    alone = evidence.alone.sqnr_db
    if alone > GOOD_DB:
        return _inherited(evidence)
    causes = [*_weights(evidence), *_inputs(evidence), *_stored(evidence)]
    if causes:
        return "; ".join(causes[:2])
    said = _inherited(evidence)
    return said or ("" if alone > FAIR_DB else "nothing stands out; `ignored` keeps it in float")


def _inherited(evidence: Evidence) -> str:
    lost = evidence.alone.sqnr_db - evidence.together.sqnr_db
    if lost <= INHERITED_DB or not evidence.upstream:
        return ""
    return f"{lost:.0f} dB of its error come with its inputs: look at {evidence.upstream} and before"


def _weights(evidence: Evidence) -> list[str]:
    weights, inputs = evidence.weights_db, evidence.inputs_db
    if weights is None or inputs is None or weights > inputs - DOMINANT_DB:
        return []
    return [
        f"its weights dominate ({weights:.0f} dB alone, its inputs {inputs:.0f} dB): more bits for weights, "
        "or `ignored`"
    ]


def _inputs(evidence: Evidence) -> list[str]:
    """Return what is wrong with what it reads, unless its weights matter much more."""
    weights, inputs = evidence.weights_db, evidence.inputs_db
    if weights is not None and inputs is not None and inputs > weights + DOMINANT_DB:
        return []
    found = _uneven(evidence)
    return found + (_range("what it reads", evidence.reads) if evidence.reads is not None else [])


def _uneven(evidence: Evidence) -> list[str]:
    before, after = (_unevenness(c) for c in (evidence.channels_before, evidence.channels_after))
    if after <= UNEVEN:
        return []
    said = f"its widest channel is {after:.0f} times the median"
    if before and after < BALANCED * before:
        return [f"{said} (before balancing {before:.0f} times)"]
    return [f"{said}, and balancing does not reach it: `ignored` keeps it in float"]


def _stored(evidence: Evidence) -> list[str]:
    gives = evidence.gives
    if gives is None:
        return []
    if gives.dtype == "int16" and gives.clipped > 0:
        return [
            f"the residual trunk is clipped ({100 * gives.clipped:.2g} % of the values): calibrate on "
            "samples with larger values"
        ]
    return _range("what it gives", gives)


def _range(what: str, spread: Spread) -> list[str]:
    found = []
    if spread.move is not None and spread.move > MOVES:
        found.append(
            f"the scale of {what} would move by {100 * spread.move:.0f} % with other samples: give more"
        )
    if spread.clipping > CLIPPING:
        found.append(
            f"clipping {100 * spread.clipped:.2g} % of {what} makes {100 * spread.clipping:.0f} % of its "
            "error: observer minmax, or more samples"
        )
    elif spread.outliers > OUTLIERS and spread.dtype != "int16" and _covered(spread):
        found.append(
            f"the largest value of {what} is {spread.outliers:.0f} times the 99.9th percentile: try observer "
            "percentile"
        )
    return found


def _covered(spread: Spread) -> bool:
    """Tell whether the range holds all values seen: else outliers are cut already."""
    step = (spread.high - spread.low) / 100
    return spread.low - step <= spread.minimum and spread.maximum <= spread.high + step


def _unevenness(channels: Sequence[float]) -> float:
    """Return the widest channel over the median of those that are alive; 0 for none."""
    sizes = np.array([size for size in channels if size > 0])
    return float(sizes.max() / np.median(sizes)) if len(sizes) else 0.0
