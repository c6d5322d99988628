"""The layer norm kernel equals numerics.layer_norm bit for bit, in registers of every width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule.isa_cases import ISA, built, marked
from tests.schedule.pool import pool_of
from tvmq import numerics
from tvmq.formats import code_limits
from tvmq.schedule.layer_norm import (
    LayerNormDecision,
    LayerNormSpec,
    default_decision,
    layer_norm_prim_func,
    layer_norm_space,
    speed_of,
    supports,
)

BASE = "sse4"  # on every x86 machine
WIDTHS = [marked("avx512_vbmi"), marked("avx2"), marked("sse4"), marked("neon", slow=True)]
DEIT = LayerNormSpec(
    rows=197,
    channels=192,
    gain_shift=10,
    epsilon=300,
    limit=numerics.layer_norm_limit(192),
    out_dtype="uint8",
)


def check(spec: LayerNormSpec, isa: str, *inputs: Any, decision: LayerNormDecision | None = None) -> None:
    random = np.random.default_rng(0)
    gain = random.integers(-(2**12), 2**8, spec.channels).astype("int32")
    offset = random.integers(-(2**17), 2**17, spec.channels).astype("int32")
    func = layer_norm_prim_func(spec, decision, ISA[isa])
    kernel = built(func, isa)
    for x in inputs:
        out = tvm.runtime.tensor(np.full(x.shape, 77, spec.out_dtype))
        outs = [out] + ([tvm.runtime.tensor(np.full(x.shape, 77, "uint8"))] if spec.copy else [])
        arguments = [x, gain, offset]
        if spec.pieces:  # the pieces in a random order, and the index that takes them back
            order = random.permutation(spec.rows * spec.pieces).astype("int32")
            arguments[0] = np.empty((len(order), spec.channels // spec.pieces), "int16")
            arguments[0][order] = x.reshape(arguments[0].shape)
            arguments.append(order)
        kernel(*map(tvm.runtime.tensor, arguments), *outs)
        wanted = numerics.layer_norm(
            x,
            gain,
            offset,
            gain_shift=spec.gain_shift,
            epsilon=spec.epsilon,
            limit=spec.limit,
            dtype=spec.out_dtype,
        )
        wanted = np.clip(wanted, *spec.clip)
        np.testing.assert_array_equal(out.numpy(), wanted)
        if spec.copy:
            shift, zero_point, *clip = spec.copy
            copy = numerics.requantize(wanted, shift, zero_point, "uint8")
            np.testing.assert_array_equal(outs[1].numpy(), np.clip(copy, *(clip or (0, 255))))


def normal_rows(spec: LayerNormSpec, spread: float) -> Any:
    values = np.random.default_rng(1).normal(40, spread, (spec.rows, spec.channels))
    return values.clip(-32768, 32767).astype("int16")


@pytest.mark.parametrize("isa", WIDTHS)
@settings(max_examples=5, deadline=None)
@given(
    rows=st.integers(1, 40),
    channels=st.one_of(st.integers(1, 200), st.sampled_from([192, 384, 768])),
    gain_shift=st.integers(0, 20),
    epsilon=st.sampled_from([0, 1, 300, 2**30]),
    out_dtype=st.sampled_from(["uint8", "int8", "int16"]),
    pieces=st.sampled_from([0, 1, 4]),
    bits=st.sampled_from([4, 6, None]),
)
def test_any_shape_is_exact(
    isa: str, rows: int, channels: int, gain_shift: int, epsilon: int, out_dtype: str, pieces: int, bits: Any
) -> None:
    low, high = (None, None) if bits is None else code_limits(out_dtype, bits)
    channels *= pieces or 1
    limit = numerics.layer_norm_limit(channels)
    spec = LayerNormSpec(rows, channels, gain_shift, epsilon, limit, out_dtype, pieces, None, low, high)
    check(spec, isa, *(normal_rows(spec, spread) for spread in (0.2, 3, 900, 20_000)))


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("epsilon", [0, 300])
def test_extreme_rows(isa: str, epsilon: int) -> None:
    spec = replace(DEIT, rows=7, epsilon=epsilon, gain_shift=4, out_dtype="int16")
    x = np.zeros((spec.rows, spec.channels), "int16")
    x[0], x[1], x[2] = 7, -32768, 32767  # constant rows: the variance is 0 and the reciprocal 2**40
    x[3, 5] = 32767  # one outlier, as far from the mean as a value can be
    x[4, ::2], x[4, 1::2] = -32768, 32767  # the largest variance
    x[5, 0] = 1  # a deviation under half a unit
    x[6] = np.arange(spec.channels) * 300 - 28000
    check(spec, isa, x)


def test_a_limit_that_clips_is_exact() -> None:
    spec = replace(DEIT, limit=1500, gain_shift=0, out_dtype="int16")
    check(spec, BASE, normal_rows(spec, 900), normal_rows(spec, 0.2))


@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(threads: int) -> None:
    with pool_of(threads):
        check(DEIT, BASE, normal_rows(DEIT, 900))


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(DEIT) is None
    assert "channels are over 8191" in str(supports(replace(DEIT, channels=9000)))
    with pytest.raises(ValueError, match="out_dtype 'float32'"):
        layer_norm_prim_func(replace(DEIT, out_dtype="float32"))


@settings(max_examples=10, deadline=None)
@given(st.data(), st.sampled_from([1, 33]), st.sampled_from([1, 24, 64, 192]), st.sampled_from([0, 2]))
def test_every_point_of_the_space_gives_the_same_bytes(
    data: st.DataObject, rows: int, width: int, pieces: int
) -> None:
    channels = width * (pieces or 1)
    limit = numerics.layer_norm_limit(channels)
    spec = LayerNormSpec(rows, channels, 9, 300, limit, "uint8", pieces)
    decision = LayerNormDecision(**data.draw(st.sampled_from(list(layer_norm_space(spec, threads=2)))))
    check(spec, BASE, normal_rows(spec, 900), decision=decision)


def test_layers_that_differ_in_constants_alone_are_tuned_as_one() -> None:
    assert speed_of(replace(DEIT, gain_shift=3, epsilon=7)) == speed_of(DEIT)
    assert speed_of(replace(DEIT, limit=7)) != speed_of(DEIT)


@pytest.mark.parametrize(
    ("rows", "threads", "block"), [(197, 1, 32), (197, 2, 16), (3136, 2, 32), (5, 1, 32)]
)
def test_blocks_are_large_where_threads_share_them_evenly(rows: int, threads: int, block: int) -> None:
    assert default_decision(replace(DEIT, rows=rows), threads).block_rows == block


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("copy", [(0, 7), (5, 128), (16, 0), (7, 9, 0, 15)])
@pytest.mark.parametrize("shape", [(5, 33), (40, 64)])
def test_a_uint8_copy_is_stored_in_the_same_pass(isa: str, copy: tuple[int, ...], shape: tuple[int, int]):
    spec = replace(DEIT, rows=shape[0], channels=shape[1], out_dtype="int16", copy=copy, gain_shift=3)
    spec = replace(spec, limit=numerics.layer_norm_limit(shape[1]))
    check(spec, isa, normal_rows(spec, 900), normal_rows(spec, 9))


def test_only_a_result_of_16_bits_has_a_copy():
    assert "has no copy" in str(supports(replace(DEIT, copy=(3, 0))))
