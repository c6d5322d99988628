"""What attention kernels take, and how they cut the work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tvmq.schedule.attention import attention_prim_func
from tvmq.schedule.attention_spec import (
    AttentionSpec,
    attention_space,
    default_decision,
    pack_bias,
    speed_of,
    supports,
    unpack_bias,
)
from tvmq.schedule.isa import ISAS

SPEC = AttentionSpec(2, 3, 197, 197, 64, 9, 1 << 28, 24, zero_point=128, out_dtype="uint8")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"head_dim": 40}, "head_dim 40 is not a multiple of 16"),
        ({"keys": 70_000}, "keys are over"),
        ({"score_shift": -11}, r"score_shift -11 is outside -10..31"),
        ({"norm_shift": 7}, "norm_shift 7 is outside 8..50"),
        ({"biases": ((1, 3),) * 3}, "3 biases are over 2"),
        ({"biases": ((3, 1),)}, "do not divide 2 batches of 3 heads"),
        ({"mask": (2, 196)}, "is not for 2 batches of 197 queries"),
    ],
)
def test_what_the_kernel_cannot_do_is_said(changed, reason):
    wrong = replace(SPEC, **changed)
    assert reason in str(supports(wrong))
    with pytest.raises(ValueError, match="ask supports"):
        attention_prim_func(wrong, default_decision(wrong, 1, 4), ISAS[0])


def test_biases_and_masks_of_every_form_are_taken():
    for biases in ((), ((1, 1),), ((1, 3), (2, 1)), ((2, 3),)):
        for mask in (None, (1, 1), (2, 1), (1, 197), (2, 197)):
            assert supports(replace(SPEC, biases=biases, mask=mask)) is None


@pytest.mark.parametrize(
    ("queries", "threads", "cut"), [(197, 1, (6, 1)), (49, 1, (5, 1)), (3, 1, (3, 1)), (197, 4, (6, 2))]
)
def test_the_default_cut_repeats_few_rows_and_balances_threads(queries, threads, cut):
    decision = default_decision(replace(SPEC, queries=queries), threads, 4)
    assert (decision.rows, decision.splits) == cut


@pytest.mark.parametrize("keys", [1, 16, 49])
def test_unpacking_a_bias_undoes_packing(keys):
    bias = np.arange(2 * 3 * keys, dtype=np.int16).reshape(2, 1, 3, keys)
    packed = pack_bias(bias)
    assert packed.shape[-1] % 32 == 0
    assert sorted(packed.ravel())[: packed.size - bias.size] == [-(2**15)] * (packed.size - bias.size)
    assert (unpack_bias(packed, bias.shape) == bias).all()


def test_layers_that_differ_in_constants_alone_are_tuned_as_one():
    other = replace(SPEC, score_shift=7, numerator=3, norm_shift=20, zero_point=0)
    assert speed_of(other) == speed_of(SPEC)
    assert len({speed_of(replace(SPEC, **d)) for d in ({}, {"score_shift": -1}, {"keys": 9})}) == 3


@pytest.mark.parametrize(("queries", "threads"), [(1, 1), (3, 2), (49, 64), (197, 2)])
def test_the_default_cut_is_in_the_space(queries, threads):
    space = attention_space(replace(SPEC, queries=queries), threads, 4)  # it checks its default
    assert all(d["rows"] * d["vectors"] <= 28 for d in space)
    assert 5 <= len(list(space)) < 1000
