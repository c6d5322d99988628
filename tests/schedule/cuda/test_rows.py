"""Layer norm and attention on GPUs, emulated, equal numerics bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.schedule.cuda.emulator import EmulatedKernels, extents, needs_emulator
from tvmq import numerics
from tvmq.schedule.attention_spec import AttentionSpec
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.rows import (
    attention_bytes,
    attention_prim_func,
    attention_space,
    layer_norm_prim_func,
    layer_norm_space,
    supports,
)
from tvmq.schedule.layer_norm import LayerNormSpec

NUMBERS = {"score_shift": 9, "numerator": 1 << 28, "norm_shift": 24, "zero_point": 128, "out_dtype": "uint8"}
DEIT = AttentionSpec(batch=1, heads=2, queries=70, keys=70, head_dim=64, **NUMBERS)  # type: ignore[arg-type]
NARROW = {"batch": 2, "queries": 5, "keys": 131, "head_dim": 16, "out_dtype": "int8", "zero_point": 0}
ATTENTIONS = {
    "deit": DEIT,
    "narrow": replace(DEIT, **NARROW, low=-90),
    "biased": replace(DEIT, batch=4, queries=9, keys=9, head_dim=32, biases=((1, 2), (2, 1)), score_shift=6),
    "masked": replace(DEIT, batch=2, queries=33, keys=33, head_dim=48, mask=(2, 33), indexed=True),
    "hidden": replace(DEIT, batch=2, queries=7, keys=65, head_dim=16, mask=(2, 1), score_shift=-2),
    "long": replace(DEIT, heads=1, queries=19, keys=197, head_dim=32),
    "broad": replace(DEIT, heads=1, queries=18, keys=100, head_dim=144),
    "flat": replace(DEIT, heads=1, queries=17, keys=64, head_dim=96, score_shift=20),
}  # fmt: skip


def attention_case(spec: AttentionSpec) -> tuple[list[Any], Any]:
    random = np.random.default_rng(0)
    width, tokens = spec.heads * spec.head_dim, (spec.queries, spec.keys, spec.keys)
    q, k, v = (random.integers(-128, 128, (spec.batch * n, width)).astype("int8") for n in tokens)
    scores = (spec.queries, spec.keys)
    biases = [random.integers(-400, 400, (*sizes, *scores)).astype("int16") for sizes in spec.biases]
    mask = None
    if spec.mask is not None:
        mask = random.integers(0, 2, (*spec.mask, spec.keys)).astype("uint8")
        mask[-1, -1] = 0
    order = random.permutation(len(q)) if spec.indexed else np.arange(len(q))

    def heads_first(x: Any, count: int) -> Any:
        x = x[order] if spec.indexed else x
        return x.reshape(spec.batch, count, spec.heads, spec.head_dim).swapaxes(1, 2)

    table = numerics.softmax_table()
    result = numerics.attention(
        *(heads_first(x, n) for x, n in zip((q, k, v), tokens, strict=True)),
        table,
        score_shift=spec.score_shift,
        numerator=spec.numerator,
        norm_shift=spec.norm_shift,
        zero_point=spec.zero_point,
        dtype=spec.out_dtype,
        biases=biases,
        mask=mask,
    )
    wanted = np.empty(q.shape, spec.out_dtype)
    wanted[order] = result.swapaxes(1, 2).reshape(q.shape).clip(*spec.clip)
    index = [order.astype("int32"), np.argsort(order).astype("int32")] if spec.indexed else []
    return [q, k, v, table, *biases, *([] if mask is None else [mask]), *index], wanted


@needs_emulator
@pytest.mark.parametrize("capability", [(7, 2), (7, 5), (8, 0)], ids=str)
def test_attention_equals_numerics(capability: tuple[int, int]):
    funcs = {name: attention_prim_func(spec, 1 + i % 2) for i, (name, spec) in enumerate(ATTENTIONS.items())}
    kernels = EmulatedKernels(funcs, capability)
    for name, spec in ATTENTIONS.items():
        arguments, wanted = attention_case(spec)
        found = kernels.run(name, [*arguments, np.zeros_like(wanted)])[-1]
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_any_number_of_windows_is_one_launch():
    swin = replace(DEIT, batch=1024 * 64, heads=3, queries=49, keys=49, head_dim=32)
    assert extents(attention_prim_func(swin, 4)) == ([1024 * 64 * 3, 1, 1], [128, 1, 1])


@needs_emulator
def test_layer_norm_equals_numerics():
    plain = LayerNormSpec(9, 64, 10, 300, numerics.layer_norm_limit(64), "uint8", low=3)
    specs = {
        "plain": plain,
        "prime": replace(plain, channels=37, out_dtype="int16", low=None, copy=(5, 100)),
        "pieces": replace(plain, rows=4, channels=96, pieces=4, out_dtype="int8", low=None),
        "wide": replace(plain, rows=3, channels=1000, epsilon=2**40, limit=numerics.layer_norm_limit(1000)),
    }
    kernels = EmulatedKernels({name: layer_norm_prim_func(spec, 2) for name, spec in specs.items()})
    for name, spec in specs.items():
        arguments, expected = norm_case(spec)
        results = [np.zeros_like(values) for values in expected]
        found = kernels.run(name, [*arguments, *results])[-len(results) :]
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, wanted, err_msg=name)


def norm_case(spec: LayerNormSpec) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(1)
    x = random.integers(-(2**15), 2**15, (spec.rows, spec.channels)).astype("int16")
    x[0], x[1] = 2**15 - 1, -(2**15)
    x[2] = random.integers(-2, 3, spec.channels)
    gain = random.integers(-(2**12), 2**8, spec.channels).astype("int32")
    offset = random.integers(-(2**17), 2**17, spec.channels).astype("int32")
    numbers = {"gain_shift": spec.gain_shift, "epsilon": spec.epsilon, "limit": spec.limit}
    wanted = numerics.layer_norm(x, gain, offset, dtype=spec.out_dtype, **numbers).clip(*spec.clip)
    arguments = [x, gain, offset]
    if spec.pieces:
        order = random.permutation(spec.rows * spec.pieces).astype("int32")
        arguments[0] = np.empty((len(order), spec.width), "int16")
        arguments[0][order] = x.reshape(arguments[0].shape)
        arguments.append(order)
    copies = [numerics.requantize(wanted, *spec.copy[:2], "uint8")] if spec.copy else []
    return arguments, [wanted, *copies]


def test_defaults_keep_a_large_gpu_busy_and_fit_any():
    large, small = GpuModel((9, 0), 132, 4096), GpuModel((7, 5), 40, 1024)
    assert attention_space(DEIT, large).default == {"warps": 1}
    assert attention_space(replace(DEIT, batch=64), large).default == {"warps": 4}
    assert layer_norm_space(LayerNormSpec(197, 64, 10, 3, 9, "uint8"), large).default == {"warps": 1}
    assert attention_bytes(replace(DEIT, head_dim=256)) <= small.shared_bytes
    assert supports(DEIT) is None
    assert supports(replace(DEIT, head_dim=272)) is not None
