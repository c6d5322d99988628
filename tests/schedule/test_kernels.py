from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of
from tests.strategies import seeds
from tvmq.formats import PACKED_BITS
from tvmq.schedule.attention_spec import pack_bias
from tvmq.schedule.conv_spec import pack_rows
from tvmq.schedule.depthwise_spec import pack_channels
from tvmq.schedule.depthwise_spec import pack_weight as pack_depthwise
from tvmq.schedule.float_linear import pack_float_weight
from tvmq.schedule.kernels import UNPACK, find, unpack
from tvmq.schedule.linear_spec import LANES, pack_weight, pad_channels
from tvmq.schedule.saturation import pack_sorted
from tvmq.target import load_profile

LINEAR = {
    "kernel": "linear", "in_dtype": "uint8", "out_dtype": "uint8", "residual": False, "table": False,
    "fixed_point": False, "zero_point": 0, "low": 0, "high": 255,
}  # fmt: skip
SHAPES = [(5, 8), (8, 20), (20,), (20,)]

PACK = {
    "linear16x4": pack_weight,
    "sorted16x4": pack_sorted,
    "float16": pack_float_weight,
    "keys16": pack_bias,
    "channels16": lambda values: pad_channels(values, -(-len(values) // LANES) * LANES),
    "conv16x4": pack_rows,
    **{f"conv16x4w{n}": partial(pack_rows, bits=n) for n in PACKED_BITS},
    **{f"depthwise{n}": partial(pack_depthwise, widest=n) for n in (16, 32, 64)},
    **{f"quarters{n}": partial(pack_channels, widest=n) for n in (16, 32, 64)},
}


@given(st.sampled_from(sorted(UNPACK)), st.integers(1, 9), st.integers(1, 50), seeds)
def test_unpacking_undoes_every_packing(layout: str, depth: int, outputs: int, seed: int):
    shapes = {"channels16": (outputs,), "keys16": (1, 2, depth, outputs), "conv16x4": (depth, 2, 3, outputs)}
    shapes |= {name: shapes["conv16x4"] for name in PACK if name.startswith("conv16x4w")}
    shapes |= {name: (depth, 3, 1, outputs + 15) for name in PACK if name.startswith("depthwise")}
    shapes |= {name: (outputs + 15,) for name in PACK if name.startswith("quarters")}
    shape = shapes.get(layout, (4 * depth, outputs))
    values = np.random.default_rng(seed).integers(-127, 128, shape)
    values = values.astype({"float16": np.float32, "keys16": np.int16}.get(layout, np.int8))
    bits = int(layout.removeprefix("conv16x4w")) if layout.startswith("conv16x4w") else 8
    values = values if bits == 8 else values & np.int8(-1 << 8 - bits)
    packed = PACK[layout](values)
    assert packed.dtype == values.dtype
    assert packed.size * 8 >= values.size * bits
    np.testing.assert_array_equal(unpack(packed, layout, shape), values)


def test_plain_constants_are_left_as_they_are():
    values = np.arange(6)
    assert unpack(values, "plain", (6,)) is values


@pytest.mark.parametrize(
    ("profile", "attrs", "shapes", "found"),
    [
        ("x86_avx512_vnni", {}, SHAPES, True),
        ("x86_avx2", {}, SHAPES, True),
        ("x86_baseline", {}, SHAPES, True),
        ("arm_dotprod", {}, SHAPES, False),  # no ARM kernels yet
        ("x86_avx512_vnni", {"kernel": "conv_transpose"}, SHAPES, False),  # no such family
        ("x86_avx512_vnni", {}, [(5, 6), (6, 20), (20,), (20,)], False),  # 6 is no multiple of 4
    ],
)
def test_a_kernel_is_found_where_profile_and_shape_allow(profile, attrs, shapes, found):
    kernel = find({**LINEAR, **attrs}, shapes, load_profile(profile), threads=1)
    assert (kernel is not None) == found


@pytest.mark.parametrize("profile", ["x86_avx512_vnni", "x86_avx2", "x86_baseline"])
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_few_bits_take_so_much_memory(profile: str, bits: int):
    shapes = [(5, 96), (96, 32), (32,), (32,)]
    kernel = find({**LINEAR, "weight_bits": bits}, shapes, load_profile(profile), threads=1)
    assert kernel is not None
    packing = kernel.packing[1]
    assert packing is not None
    weight = (np.arange(96 * 32).reshape(96, 32) << 8 - bits).astype(np.int8)
    packed = packing.pack(weight)
    assert packed.nbytes * 8 == weight.nbytes * bits
    np.testing.assert_array_equal(unpack(packed, packing.layout, weight.shape), weight)
    with pytest.raises(ValueError, match=f"weights of {bits} bits are multiples of {1 << 8 - bits}"):
        packing.pack(weight + np.int8(1))


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
