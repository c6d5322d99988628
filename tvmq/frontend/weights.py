"""Refuse weights that no quantizer can work from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.errors import UsageError


def check_finite(weights: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Raise UsageError for the first weight that holds NaN or infinity, with its name and their count."""
    for name, values in weights:
        if values.dtype.kind != "f" or np.isfinite(values).all() or _is_mask(values):
            continue
        nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        raise UsageError(
            f"{name}: holds {nans} NaN and {infinities} infinite of {values.size} values, "
            "wanted finite weights; load a checkpoint that trained without overflow"
        )


def check_precision(name: str, dtype: str, way_out: str) -> None:
    """Raise UsageError for a floating weight that is not float32."""
    if "float" in dtype and dtype != "float32":
        raise UsageError(f"{name}: is {dtype}, tvmq starts from float32; {way_out}")


def _is_mask(values: npt.NDArray[Any]) -> bool:
    """Say whether values are an additive attention mask, 0 or -inf and nothing else."""
    return bool(((values == 0) | np.isneginf(values)).all())
