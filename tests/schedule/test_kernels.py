from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tests.quantize.test_moments import site
from tests.schedule.conv_cases import geometry_of
from tests.schedule.test_attention import DEIT
from tvmq.formats import PACKED_BITS
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.quantize.site_weights import kept_apart
from tvmq.schedule.attention_spec import buffers as attention_buffers
from tvmq.schedule.kernels import find
from tvmq.schedule.packed_operand import PACKED_ATTENTION
from tvmq.schedule.packing import unpack
from tvmq.target import load_profile

LINEAR = {
    "kernel": "linear", "in_dtype": "uint8", "out_dtype": "uint8", "residual": False, "table": False,
    "fixed_point": False, "gain": False, "zero_point": 0, "low": 0, "high": 255,
}  # fmt: skip
SHAPES = [(5, 8), (8, 20), (20,), (20,)]


@pytest.mark.parametrize(
    ("profile", "attrs", "shapes", "found"),
    [
        ("x86_avx512_vnni", {}, SHAPES, True),
        ("x86_avx2", {}, SHAPES, True),
        ("x86_baseline", {}, SHAPES, True),
        ("arm_dotprod", {}, SHAPES, True),
        ("arm_neon", {}, [(5, 6), (6, 20), (20,), (20,)], True),  # what is missing to 8 inputs is zeros
        ("x86_avx512_vnni", {"kernel": "conv_transpose"}, SHAPES, False),  # no such family
        ("x86_avx512_vnni", {}, [(5, 6), (6, 20), (20,), (20,)], False),  # 6 is no multiple of 4
    ],
)
def test_a_kernel_is_found_where_profile_and_shape_allow(profile, attrs, shapes, found):
    kernel = find({**LINEAR, **attrs}, shapes, load_profile(profile), threads=1)
    assert (kernel is not None) == found


@pytest.mark.parametrize("profile", ["x86_avx512_vnni", "x86_avx2", "x86_baseline", "arm_dotprod"])
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_few_bits_take_so_much_memory(profile: str, bits: int):
    shapes = [(5, 96), (96, 32), (32,), (32,)]
    kernel = find({**LINEAR, "weight_bits": bits}, shapes, load_profile(profile), threads=1)
    assert kernel is not None
    packing = kernel.packing[1]
    assert packing is not None
    weight = (np.arange(96 * 32).reshape(96, 32) << 8 - bits).astype(np.int8)
    packed = packing.pack(weight)
    sums = 32 * 4 if profile.startswith("arm") else 0
    assert (packed.nbytes - sums) * 8 == weight.nbytes * bits
    np.testing.assert_array_equal(unpack(packed, packing.layout, weight.shape), weight)
    with pytest.raises(ValueError, match=f"weights of {bits} bits are multiples of {1 << 8 - bits}"):
        packing.pack(weight + np.int8(1))


@pytest.mark.parametrize("kind", ["linear", "pointwise", "strided"])
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_the_least_values_of_few_bits_lie_as_arms_word_sums_need_them(kind: str, bits: int):
    node, _, _, weight = site(kind)
    least = np.full(tuple(weight.shape), -(1 << bits - 1), np.int8)
    apart = kept_apart(node, least, bits) << 8 - bits
    values, attrs = apart, {**LINEAR, "weight_bits": bits, "gain": True}
    shapes = [(5, 6), values.shape, (3,), (3,), (3,)]
    if kind != "linear":
        x = [int(d) for d in node.call.args[0].ty.shape]
        g = ConvGeometry.of(x, tuple(weight.shape), node.call.attrs)
        attrs |= {"kernel": "conv2d", "pad_value": 0, **g.attrs()}
        values = np.ascontiguousarray(apart.transpose(2, 3, 1, 0))
        shapes = [(g.batch * g.rows * g.columns, g.channels), values.shape, *[(g.outputs,)] * 3]
    kernel = find(attrs, shapes, load_profile("arm_neon"), threads=1)
    packing = kernel.packing[1]
    assert packing.fits(packing.pack(values))
    assert not packing.fits(packing.pack(np.full(values.shape, -128, np.int8)))


@pytest.mark.parametrize(("profile", "bits"), [("x86_amx", 4), ("x86_avx512_vnni", 7)])
def test_what_is_slow_to_unpack_takes_bytes(profile: str, bits: int):
    kernel = find({**LINEAR, "weight_bits": bits}, SHAPES, load_profile(profile), threads=1)
    assert kernel is not None
    assert kernel.packing[1].layout == "linear16x4"


def test_tiles_multiply_what_fills_them():
    def instructions(rows: int) -> str:
        shapes = [(rows, 64), (64, 64), (64,), (64,)]
        return find(LINEAR, shapes, load_profile("x86_amx"), threads=1).function().script()

    assert "tile" in instructions(16)
    assert "tile" not in instructions(15)


def test_equal_calls_share_a_kernel_and_others_do_not():
    def key(profile: str = "x86_avx2", shapes=SHAPES, **attrs):
        return find({**LINEAR, **attrs}, shapes, load_profile(profile), threads=1).key

    keys = [key(), key(high=100), key("x86_avx512_vnni"), key(shapes=[(6, 8), *SHAPES[1:]])]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.parametrize(("profile", "name"), [("x86_avx512_vnni", "conv2d_"), ("x86_avx2", "linear_")])
def test_without_vpdpbusd_a_pointwise_convolution_is_a_linear(profile: str, name: str):
    geometry = geometry_of(8, 20, 1)
    attrs = {**LINEAR, "kernel": "conv2d", "pad_value": 0, **geometry.attrs()}
    shapes = [(geometry.pixels, 8), (1, 1, 8, 20), (20,), (20,)]
    kernel = find(attrs, shapes, load_profile(profile), 1)
    assert kernel is not None
    assert kernel.name.startswith(name)
    weight = np.arange(160).astype(np.int8).reshape(1, 1, 8, 20)
    packing = kernel.packing[1]
    assert packing is not None
    np.testing.assert_array_equal(unpack(packing.pack(weight), packing.layout, weight.shape), weight)
    both = {
        **attrs,
        "out_dtype": "int16",
        "low": -32768,
        "high": 32767,
        "copy_shift": 3,
        "copy_zero_point": 0,
        "copy_low": 0,
        "copy_high": 255,
    }
    trunk = find(both, shapes, load_profile(profile), 1)
    assert trunk is not None
    assert trunk.name.startswith("conv2d_")  # the only kernel that stores a copy


def attention(profile: str, *, packed: bool = False, **change: Any) -> Any:
    spec = replace(DEIT, keys=40, biases=((1, 2),), mask=(1, 1), **change)
    low, high = spec.clip
    counts = {"biases": len(spec.biases), "mask": 1, "low": low, "high": high}
    attrs = {**asdict(spec), **counts, "kernel": PACKED_ATTENTION if packed else "attention"}
    shapes = [shape for shape, _ in list(attention_buffers(spec, packed=packed).values())[:-1]]
    return find(attrs, shapes, load_profile(profile), 1)


def test_attention_of_rows_and_of_packed_operands_are_tuned_apart():
    rows, packed = (attention("x86_avx512_vnni", packed=each) for each in (False, True))
    assert rows.key != packed.key
    assert rows.semantics != packed.semantics
    assert [p and p.layout for p in packed.packing] == [*[None] * 4, "keys16", None]


@pytest.mark.parametrize(
    ("profile", "change", "found"),
    [
        ("x86_avx512_vnni", {}, (True, True)),
        ("x86_avx2", {}, (True, False)),
        ("arm_dotprod", {}, (True, False)),
        ("x86_avx512_vnni", {"batch": 3}, (True, False)),
        ("x86_avx512_vnni", {"head_dim": 24}, (False, False)),
    ],
)
def test_packed_operands_want_vpdpbusd_and_whole_blocks(profile: str, change: Any, found: tuple[bool, bool]):
    kernels = (attention(profile, packed=packed, **change) for packed in (False, True))
    assert tuple(kernel is not None for kernel in kernels) == found
