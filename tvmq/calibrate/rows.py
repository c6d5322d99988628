"""Keep a few rows of some values: what balancing decides by. Memory does not grow with the samples' size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

Float32 = npt.NDArray[np.float32]

MOST_ROWS = 1024  # of one value


class Rows:
    """Rows [C] of values [..., C], or [B, C, H, W] where they are images, evenly from each batch.

    batches: how many will come, each of which gets its share of MOST_ROWS; what comes later is left out.
    """

    def __init__(self, wanted: Iterable[str], images: Iterable[str] = (), *, batches: int) -> None:
        self._share = -(-MOST_ROWS // batches)
        self._images = frozenset(images)
        self._kept: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}

    def observe(self, name: str, value: torch.Tensor) -> None:
        """Take rows of one value of a batch; other values are passed over."""
        kept = self._kept.get(name)
        if kept is None:
            return
        rows = value.movedim(1, -1) if name in self._images else value
        rows = rows.reshape(-1, rows.shape[-1])
        wanted = min(self._share, len(rows), MOST_ROWS - sum(map(len, kept)))
        if wanted > 0:
            places = torch.linspace(0, len(rows) - 1, wanted, dtype=torch.float64).round().long()
            kept.append(rows[places].float())

    def of(self, name: str) -> Float32 | None:
        """Return the rows of a value [R, C]; None where none was seen."""
        kept = self._kept.get(name)
        return torch.cat(kept).numpy() if kept else None
