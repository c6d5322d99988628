"""Weights sorted by what a saturating byte product may do with them.

pmaddubsw multiplies uint8 by int8 and adds neighbours as int16, saturating. It is exact for a pair of
weights whose positive part and whose negative part each sum to 128 at most: 255 * 128 < 2**15. A block is 4
inputs of 16 outputs; in a trained model nine of ten hold such pairs only, and those come first:

    int8 [groups, row bytes]: the blocks of 64 bytes | uint16 [K/4] which 4 inputs each block takes
                              | uint16 how many blocks are exact | zeros up to a multiple of 64

where the blocks are those of linear_spec.pack_weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.schedule.linear_spec import DEPTH, LANES, pack_weight, unpack_weight

BLOCK = LANES * DEPTH
INDEX = 2  # bytes of an index
MAX_BLOCKS = 2**16 - 1
LARGEST_EXACT = (2**15 - 1) // 255

Bytes = npt.NDArray[np.int8]


def row_bytes(inputs: int) -> int:
    """Return the bytes of one group of 16 outputs."""
    blocks = inputs // DEPTH
    return -(-(blocks * (BLOCK + INDEX) + INDEX) // BLOCK) * BLOCK


def pack_sorted(weight: Bytes) -> Bytes:
    """Return int8 [inputs, outputs] as this module's docstring says; inputs / 4 is at most MAX_BLOCKS."""
    blocks = pack_weight(weight)
    exact = _is_exact(blocks)
    order = np.argsort(~exact, axis=1, kind="stable")
    index = np.concatenate([order, exact.sum(1, keepdims=True)], axis=1).astype("<u2").view(np.int8)
    groups = len(blocks)
    body = np.take_along_axis(blocks, order[:, :, None, None], axis=1).reshape(groups, -1)
    packed = np.zeros((groups, row_bytes(weight.shape[0])), np.int8)
    packed[:, : body.shape[1]] = body
    packed[:, body.shape[1] : body.shape[1] + index.shape[1]] = index
    return packed


def unpack_sorted(packed: Bytes, inputs: int, outputs: int) -> Bytes:
    """Return int8 [inputs, outputs], the inverse of pack_sorted."""
    count = inputs // DEPTH
    body = packed[:, : count * BLOCK].reshape(-1, count, LANES, DEPTH)
    index = np.ascontiguousarray(packed[:, count * BLOCK : count * (BLOCK + INDEX)])
    back = np.argsort(index.view("<u2"), axis=1)
    return unpack_weight(np.take_along_axis(body, back[:, :, None, None], axis=1), inputs, outputs)


def _is_exact(blocks: Bytes) -> npt.NDArray[Any]:
    """Return bool [groups, blocks] for int8 [groups, blocks, 16, 4]."""
    pairs = blocks.reshape(*blocks.shape[:2], -1, 2).astype(np.int16)
    up, down = np.maximum(pairs, 0).sum(-1), -np.minimum(pairs, 0).sum(-1)
    exact: npt.NDArray[Any] = (np.maximum(up, down) <= LARGEST_EXACT).all(-1)
    return exact
