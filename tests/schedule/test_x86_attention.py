"""The attention kernel equals numerics.attention bit for bit, on CPUs with and without VBMI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule.pool import pool_of
from tvmq import numerics
from tvmq.schedule.x86_attention import AttentionSpec, attention_prim_func, supports

CPUS = {"znver4": True, "cascadelake": False}  # whether the byte permute (VBMI) is there
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


def runs_here(cpu: str) -> bool:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
    wanted = {"avx512_vnni", "avx512bw"} | ({"avx512_vbmi", "avx512vbmi"} if CPUS[cpu] else set())
    return len(wanted & set(flags.split())) >= 2 + CPUS[cpu]


def random_inputs(spec: AttentionSpec, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    width = spec.heads * spec.head_dim
    rows = (spec.batch * spec.queries, spec.batch * spec.keys, spec.batch * spec.keys)
    return [random.integers(-128, 128, (n, width)).astype("int8") for n in rows]


def expected(spec: AttentionSpec, q: Any, k: Any, v: Any) -> Any:
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
    )
    return result.swapaxes(1, 2).reshape(q.shape)


def check(spec: AttentionSpec, cpu: str, *batches: list[Any], threads: int = 1) -> None:
    if not runs_here(cpu):
        pytest.skip(f"this machine cannot run code for {cpu}")
    func = attention_prim_func(spec, vbmi=CPUS[cpu], threads=threads)
    kernel = tvm.compile(func, target=tvm.target.Target({"kind": "llvm", "mcpu": cpu}))
    for q, k, v in batches:
        out = tvm.runtime.tensor(np.full(q.shape, 77, spec.out_dtype))
        kernel(*(tvm.runtime.tensor(x) for x in (q, k, v, numerics.softmax_table())), out)
        np.testing.assert_array_equal(out.numpy(), expected(spec, q, k, v))


@pytest.mark.parametrize("cpu", CPUS)
@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 140),
    head_dim=st.sampled_from([16, 32, 64, 80]),
    score_shift=st.integers(-9, 14),
    threads=st.sampled_from([1, 2, 4]),
    out=st.sampled_from([("uint8", 128), ("int8", 0)]),
)
def test_any_shape_is_exact(
    cpu: str,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    score_shift: int,
    threads: int,
    out: tuple[str, int],
) -> None:
    spec = AttentionSpec(
        batch, heads, queries, keys, head_dim, score_shift, 1 << 28, 24, zero_point=out[1], out_dtype=out[0]
    )
    check(spec, cpu, random_inputs(spec), threads=threads)


@pytest.mark.parametrize("cpu", CPUS)
def test_the_table_is_looked_up_at_every_distance(cpu: str) -> None:
    # One query of ones against keys whose only non-zero dim counts down: distances 0, 1, 2, ... 200.
    spec = replace(DEIT, heads=1, queries=1, keys=201, head_dim=16, score_shift=0, numerator=3 * 10**8)
    q, k, _ = (np.zeros_like(x) for x in random_inputs(spec))
    q[:, :2] = 1
    k[:, 0] = np.maximum(100 - np.arange(201), -100)
    k[:, 1] = 0
    check(spec, cpu, [q, k, random_inputs(spec)[2]])


def test_extreme_values() -> None:
    spec = replace(DEIT, queries=50, keys=50, head_dim=80, score_shift=6, numerator=2**31 - 1, norm_shift=30)
    low, high = ([np.full_like(x, value) for x in random_inputs(spec)] for value in (-128, 127))
    outlier = [np.zeros_like(x) for x in random_inputs(spec)]
    for x in outlier:
        x[49, :] = 127
    check(spec, "znver4", low, high, [low[0], high[1], low[2]], [high[0], low[1], high[2]], outlier)


@pytest.mark.parametrize("threads", [1, 2])
def test_both_thread_counts_give_the_same_bytes(threads: int) -> None:
    spec = replace(DEIT, heads=3)
    with pool_of(threads):
        check(spec, "znver4", random_inputs(spec), threads=2)


def test_what_the_kernel_cannot_do_is_said() -> None:
    assert supports(DEIT) is None
    assert supports(replace(DEIT, head_dim=40)) == "head_dim 40 is not a multiple of 16"
    assert "keys are over" in str(supports(replace(DEIT, keys=70_000)))
    with pytest.raises(ValueError, match=r"score_shift -11 is outside -10\.\.31"):
        attention_prim_func(replace(DEIT, score_shift=-11), vbmi=True)
