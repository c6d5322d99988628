"""What of keys and values lies where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.schedule.operand_layout import packed_rows
from tests.schedule.test_attention import DEIT
from tvmq.schedule.packed_operand import KEYS, VALUES, PackedOperand, supports


def test_a_token_lies_where_a_dot_reads_it():
    spec = replace(DEIT, heads=2, keys=21, head_dim=32)
    rows = np.arange(21 * 64).reshape(21, 64)
    keys, values = (packed_rows(rows, PackedOperand.of(spec, name)) for name in (KEYS, VALUES))
    assert keys.shape == (4, 8, 64)
    assert values.shape == (12, 2, 64)
    token, dim = 18, 22  # of head 1
    assert keys[2 + token // 16, dim // 4, token % 16 * 4 + dim % 4] == rows[token, 32 + dim]
    assert values[6 + token // 4, dim // 16, dim % 16 * 4 + token % 4] == rows[token, 32 + dim]
    np.testing.assert_array_equal(keys[1, 0, -4:], rows[20, :4])  # padded by the last token


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"batch": 3, "keys": 128}, None),
        ({"batch": 3}, "do not fill blocks of 16"),
        ({"indexed": True}, "another order"),
        ({"head_dim": 24}, "not a multiple of 16"),
    ],
)
def test_what_linears_cannot_pack_has_a_reason(change, reason):
    found = supports(replace(DEIT, **change))
    assert found is None if reason is None else reason in found
