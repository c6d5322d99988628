"""Keys and values in their packed layout, by NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmq.schedule.packed_operand import KEYS, PackedOperand


def packed_rows(rows: Any, layout: PackedOperand) -> Any:
    """Return [batch * tokens, heads * head_dim] as packed_operand says."""
    o = layout
    heads = rows.reshape(o.batch, o.tokens, o.heads, o.head_dim).swapaxes(1, 2)
    tokens = np.minimum(np.arange(o.steps * o.together), o.tokens - 1)
    parts = o.head_dim // o.dims_together
    cut = heads[:, :, tokens].reshape(-1, o.steps, o.together, parts, o.dims_together)
    order = (0, 1, 3, 2, 4) if o.operand == KEYS else (0, 1, 3, 4, 2)
    return np.ascontiguousarray(cut.transpose(order)).reshape(o.shape)
