"""The attention kernel equals numerics.attention bit for bit, on every instruction set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, KERNEL_NAMES, VNNI_NAMES, built, marked
from tests.schedule.operand_layout import packed_rows
from tests.schedule.pool import pool_of
from tvmq import numerics
from tvmq.schedule.attention import TILE_VECTORS, attention_prim_func
from tvmq.schedule.attention_spec import (
    AttentionDecision,
    AttentionSpec,
    attention_space,
    default_decision,
    pack_bias,
)
from tvmq.schedule.packed_operand import KEYS, VALUES, PackedOperand

DEIT = AttentionSpec(
    batch=1,
    heads=2,
    queries=197,
    keys=197,
    head_dim=64,
    score_shift=9,
    numerator=1 << 28,
    norm_shift=24,
    zero_point=128,
    out_dtype="uint8",
)


def random_inputs(spec: AttentionSpec, seed: int = 0) -> list[Any]:
    """Return q, k, v, the biases and the mask."""
    random = np.random.default_rng(seed)
    width = spec.heads * spec.head_dim
    rows = (spec.batch * spec.queries, spec.batch * spec.keys, spec.batch * spec.keys)
    inputs = [random.integers(-128, 128, (n, width)).astype("int8") for n in rows]
    for sizes in spec.biases:
        inputs.append(random.integers(-400, 400, (*sizes, spec.queries, spec.keys)).astype("int16"))
    if spec.mask is not None:
        mask = random.integers(0, 2, (*spec.mask, spec.keys)).astype("uint8")
        mask[random.integers(0, spec.mask[0]), random.integers(0, spec.mask[1])] = 0
        inputs.append(mask)
    return inputs


def expected(spec: AttentionSpec, q: Any, k: Any, v: Any, *others: Any) -> Any:
    def heads_first(x: Any, tokens: int) -> Any:
        return x.reshape(spec.batch, tokens, spec.heads, spec.head_dim).swapaxes(1, 2)

    result = numerics.attention(
        heads_first(q, spec.queries),
        heads_first(k, spec.keys),
        heads_first(v, spec.keys),
        numerics.softmax_table(),
        score_shift=spec.score_shift,
        numerator=spec.numerator,
        norm_shift=spec.norm_shift,
        zero_point=spec.zero_point,
        dtype=spec.out_dtype,
        biases=others[: len(spec.biases)],
        mask=others[len(spec.biases)] if spec.mask else None,
    )
    return result.swapaxes(1, 2).reshape(q.shape).clip(*spec.clip)


def check(
    spec: AttentionSpec,
    isa: str,
    *batches: list[Any],
    threads: int = 1,
    decision: AttentionDecision | None = None,
    packed: bool = False,
) -> None:
    decision = decision or default_decision(spec, threads, TILE_VECTORS[ISA[isa].bits])
    func = attention_prim_func(spec, decision, ISA[isa], packed=packed)
    kernel = built(func, isa)
    for q, k, v, *others in batches:
        out = tvm.runtime.tensor(np.full(q.shape, 77, spec.out_dtype))
        rest = [pack_bias(x) if x.dtype == np.int16 else x for x in others]
        order = np.random.default_rng(2).permutation(len(q)).astype("int32")
        moved = [_moved(x, order) if spec.indexed else x for x in (q, k, v)]
        index = [order, np.argsort(order).astype("int32")] if spec.indexed else []
        if packed:
            layouts = [PackedOperand.of(spec, operand) for operand in (KEYS, VALUES)]
            moved[1:] = map(packed_rows, moved[1:], layouts)
        kernel(*map(tvm.runtime.tensor, (*moved, numerics.softmax_table(), *rest, *index)), out)
        result = out.numpy()[order] if spec.indexed else out.numpy()
        np.testing.assert_array_equal(result, expected(spec, q, k, v, *others))


def _moved(x: Any, order: Any) -> Any:
    """Return the rows of x where order says."""
    moved = np.empty_like(x)
    moved[order] = x
    return moved


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@settings(max_examples=3, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 140),
    head_dim=st.sampled_from([16, 32, 64, 80]),
    score_shift=st.integers(-8, 14),
    threads=st.sampled_from([1, 2, 4]),
    out=st.sampled_from(
        [("uint8", 128, None, None), ("int8", 0, None, None), ("uint8", 9, 0, 15), ("int8", 0, -7, 7)]
    ),
)
def test_any_shape_is_exact(
    isa: str,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    score_shift: int,
    threads: int,
    out: tuple[str, int, int | None, int | None],
) -> None:
    dtype, zero_point, low, high = out
    spec = AttentionSpec(
        batch, heads, queries, keys, head_dim, score_shift, 1 << 28, 24, zero_point, dtype, low=low, high=high
    )
    check(spec, isa, random_inputs(spec), threads=threads)


@pytest.mark.parametrize("isa", VNNI_NAMES)
@settings(max_examples=4, deadline=None)
@given(
    sizes=st.tuples(st.just(1), st.integers(1, 140)) | st.tuples(st.just(2), st.sampled_from([16, 48])),
    heads=st.integers(1, 3),
    queries=st.integers(1, 40),
    head_dim=st.sampled_from([16, 32, 64, 80]),
    score_shift=st.integers(-3, 14),
    threads=st.sampled_from([1, 2]),
    masked=st.booleans(),
)
def test_packed_keys_and_values_give_the_same_bytes(
    isa: str,
    sizes: tuple[int, int],
    heads: int,
    queries: int,
    head_dim: int,
    score_shift: int,
    threads: int,
    masked: bool,
) -> None:
    batch, keys = sizes
    spec = AttentionSpec(batch, heads, queries, keys, head_dim, score_shift, 1 << 28, 24, 9, "uint8")
    spec = replace(spec, biases=((1, heads),), mask=(batch, 1)) if masked else spec
    check(spec, isa, random_inputs(spec), threads=threads, packed=True)


@pytest.mark.parametrize("isa", KERNEL_NAMES)
def test_the_table_is_looked_up_at_every_distance(isa: str) -> None:
    # One query of ones against keys whose only non-zero dim counts down: distances 0, 1, 2, ... 200.
    spec = replace(DEIT, heads=1, queries=1, keys=201, head_dim=16, score_shift=0, numerator=3 * 10**8)
    q, k, _ = (np.zeros_like(x) for x in random_inputs(spec))
    q[:, :2] = 1
    k[:, 0] = np.maximum(100 - np.arange(201), -100)
    k[:, 1] = 0
    check(spec, isa, [q, k, random_inputs(spec)[2]])


@pytest.mark.parametrize("isa", KERNEL_NAMES)
def test_extreme_values(isa: str) -> None:
    spec = replace(DEIT, queries=50, keys=50, head_dim=80, score_shift=6, numerator=2**31 - 1, norm_shift=30)
    low, high = ([np.full_like(x, value) for x in random_inputs(spec)] for value in (-128, 127))
    outlier = [np.zeros_like(x) for x in random_inputs(spec)]
    for x in outlier:
        x[49, :] = 127
    check(spec, isa, low, high, [low[0], high[1], low[2]], [high[0], low[1], high[2]], outlier)


@pytest.mark.parametrize("isa", [marked("avx512_vbmi"), marked("avx2")])
@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(isa: str, threads: int) -> None:
    spec = replace(DEIT, heads=3)
    with pool_of(threads):
        check(spec, isa, random_inputs(spec), threads=2)


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@settings(max_examples=3, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 4]),
    heads=st.integers(1, 3),
    queries=st.integers(1, 20),
    keys=st.integers(1, 80),
    score_shift=st.integers(-3, 14),
    biases=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.booleans()), max_size=2),
    mask=st.none() | st.tuples(st.booleans(), st.booleans()),
)
def test_any_bias_and_mask_is_exact(
    isa: str,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    score_shift: int,
    biases: list[tuple[int, bool]],
    mask: tuple[bool, bool] | None,
) -> None:
    spec = AttentionSpec(
        batch, heads, queries, keys, 32, score_shift, 1 << 28, 24, zero_point=9, out_dtype="uint8"
    )
    spec = replace(
        spec,
        biases=tuple((min(period, batch), heads if each else 1) for period, each in biases),
        mask=mask and (batch if mask[0] else 1, queries if mask[1] else 1),
    )
    check(spec, isa, random_inputs(spec))


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@settings(max_examples=2, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 4]),
    heads=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 70), st.just(49)),
    threads=st.sampled_from([1, 2]),
    masked=st.booleans(),
)
def test_rows_in_another_order_are_exact(
    isa: str, batch: int, heads: int, tokens: int, threads: int, masked: bool
) -> None:
    spec = AttentionSpec(
        batch, heads, tokens, tokens, 32, 8, 1 << 28, 24, zero_point=9, out_dtype="uint8", indexed=True
    )
    spec = replace(spec, biases=((1, heads), (batch, 1)), mask=(batch, 1) if masked else None)
    check(spec, isa, random_inputs(spec), threads=threads)


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@pytest.mark.parametrize("keys", [3, 40])
def test_a_hidden_key_that_pads_a_pair_raises_no_maximum(isa: str, keys: int) -> None:
    spec = replace(DEIT, heads=1, queries=3, keys=keys, head_dim=32, score_shift=0, mask=(1, 3))
    check(spec, isa, *(random_inputs(spec, seed) for seed in range(4)))


@pytest.mark.parametrize("isa", KERNEL_NAMES)
def test_extreme_biases_and_rows_that_see_nothing(isa: str) -> None:
    spec = replace(DEIT, batch=2, queries=9, keys=37, head_dim=16, score_shift=-11, biases=((1, 2), (2, 1)))
    spec = replace(spec, mask=(2, 1))
    inputs = random_inputs(spec)
    for x in inputs[3:5]:
        x[...] = np.where(x < 0, -(2**15), 2**15 - 1)
    inputs[5][:] = [[[0]], [[1]]]
    low, high = (np.full_like(inputs[0], value) for value in (-128, 127))
    keys = np.full_like(inputs[1], -128)
    check(spec, isa, inputs, [low, keys, *inputs[2:]], [high, keys, *inputs[2:]])


@pytest.mark.parametrize("isa", KERNEL_NAMES)
@settings(max_examples=2, deadline=None)
@given(st.data())
def test_every_point_of_the_space_gives_the_same_bytes(isa: str, data: st.DataObject) -> None:
    heads, tokens = data.draw(st.sampled_from([(1, 1), (2, 13), (1, 50)]))
    spec = AttentionSpec(1, heads, tokens, tokens, 32, 9, 1 << 28, 24, zero_point=3, out_dtype="int8")
    space = attention_space(spec, 2, TILE_VECTORS[ISA[isa].bits])
    decision = AttentionDecision(**data.draw(st.sampled_from(list(space))))
    check(spec, isa, random_inputs(spec), decision=decision)
