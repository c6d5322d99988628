"""Packed constants come back as they were, and a kernel that is not exact with one says so."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule.conv_cases import geometry_of, spec_of
from tests.schedule.isa_cases import ISA
from tests.strategies import seeds
from tvmq.formats import PACKED_BITS
from tvmq.schedule.attention_spec import pack_bias
from tvmq.schedule.conv_spec import ConvSpec, pack_rows
from tvmq.schedule.depthwise_spec import DepthwiseSpec, pack_channels
from tvmq.schedule.depthwise_spec import pack_weight as pack_depthwise
from tvmq.schedule.float_conv_spec import FloatConvSpec, pack_float_conv
from tvmq.schedule.float_linear import pack_float_weight
from tvmq.schedule.linear_spec import LANES, pack_weight, pad_channels
from tvmq.schedule.packing import UNPACK, of_depthwise, of_windows, unpack
from tvmq.schedule.saturation import pack_sorted

PACK = {
    "linear16x4": pack_weight,
    "sorted16x4": pack_sorted,
    "float16": pack_float_weight,
    "keys16": pack_bias,
    "channels16": lambda values: pad_channels(values, -(-len(values) // LANES) * LANES),
    "conv16x4": pack_rows,
    "conv16x4s": partial(pack_rows, signed=True),
    "conv16x8": partial(pack_rows, paired=True),
    **{
        f"conv16x4w{n}{sign}": partial(pack_rows, bits=n, signed=bool(sign))
        for n in PACKED_BITS
        for sign in ("", "s")
    },
    "depthwise16s": partial(pack_depthwise, widest=16, signed=True),
    **{f"depthwise{n}": partial(pack_depthwise, widest=n) for n in (16, 32, 64)},
    **{f"quarters{n}": partial(pack_channels, widest=n) for n in (16, 32, 64)},
}
OTHERS = ("cuda_", "floats16", "offsets16")  # cuda/test_packing.py, test_float_conv_spec.py
LAYOUTS = sorted(name for name in UNPACK if not name.startswith(OTHERS))


@given(st.sampled_from(LAYOUTS), st.integers(1, 9), st.integers(1, 50), seeds)
def test_unpacking_undoes_every_packing(layout: str, depth: int, outputs: int, seed: int):
    shapes = {"channels16": (outputs,), "keys16": (1, 2, depth, outputs), "conv16x4": (depth, 2, 3, outputs)}
    shapes |= {name: shapes["conv16x4"] for name in PACK if name.startswith("conv16x")}
    shapes |= {name: (depth, 3, 1, outputs + 15) for name in PACK if name.startswith("depthwise")}
    shapes |= {name: (outputs + 15,) for name in PACK if name.startswith("quarters")}
    shape = shapes.get(layout, (4 * depth, outputs))
    values = np.random.default_rng(seed).integers(-127, 128, shape)
    values = values.astype({"float16": np.float32, "keys16": np.int16}.get(layout, np.int8))
    bits = int(layout[len("conv16x4w")]) if layout.startswith("conv16x4w") else 8
    values = values if bits == 8 else values & np.int8(-1 << 8 - bits)
    packed = PACK[layout](values)
    assert packed.dtype == values.dtype
    assert packed.size * 8 >= values.size * bits
    np.testing.assert_array_equal(unpack(packed, layout, shape), values)


def test_a_layout_may_hold_what_its_shape_does_not_tell():
    spec = FloatConvSpec(geometry=geometry_of(36, 36, 3, groups=3))
    weight = np.random.default_rng(0).standard_normal((36, 12, 3, 3), "float32")
    np.testing.assert_array_equal(unpack(pack_float_conv(weight, spec), "floats16:3", weight.shape), weight)


def test_plain_constants_are_left_as_they_are():
    values = np.arange(6)
    assert unpack(values, "plain", (6,)) is values


def test_two_least_weights_fit_where_dots_are_one_instruction():
    weight = np.full((1, 1, 8, 20), -128, np.int8)
    spec = spec_of(geometry_of(8, 20, 1), "uint8")
    depthwise = spec_of(geometry_of(16, 16, 3, groups=16), "uint8")
    assert isinstance(spec, ConvSpec)
    assert isinstance(depthwise, DepthwiseSpec)
    taps = np.full((3, 3, 1, 16), -128, np.int8)
    for name, fits in (("avx2", True), ("i8mm", True), ("dotprod", True), ("neon", False)):
        packing = of_windows(spec, ISA[name])
        assert packing.fits(packing.pack(weight)) == fits
        assert packing.fits(packing.pack(weight + np.int8(1)))
        _, packing, *_ = of_depthwise(depthwise, ISA[name], 16, 4)
        assert packing is not None
        assert packing.fits(packing.pack(taps)) == fits
        assert packing.fits(packing.pack(taps + np.int8(1)))


@pytest.mark.parametrize("bits", sorted(PACKED_BITS))
def test_two_least_weights_of_few_bits_do_not_fit_without_dot_products(bits: int):
    spec = replace(spec_of(geometry_of(8, 20, 1), "uint8"), weight_bits=bits)
    assert isinstance(spec, ConvSpec)
    weight = np.zeros((1, 1, 8, 20), np.int8)
    weight[0, 0, 4:6, 3] = -128  # a user's weights of 4 bits may go down to -8, which is stored as -128
    for name, fits in (("dotprod", True), ("neon", False)):
        packing = of_windows(spec, ISA[name])
        assert packing.fits(packing.pack(weight)) == fits
        assert packing.fits(packing.pack(np.roll(weight, 1, axis=2)))  # neighbours, but of two pairs
