import math
from dataclasses import replace

import numpy as np
import pytest

from tests import tiny_transformer
from tvmq import numerics
from tvmq.calibrate.observers import OBSERVERS
from tvmq.calibrate.range_errors import expected_error
from tvmq.plan.formats import value_formats
from tvmq.quantize.scales import GELU_FLOOR, TRUNK_HEADROOM, choose_scales
from tvmq.spec import Precision

NODES, FORMATS, SEEN = tiny_transformer.nodes(), tiny_transformer.formats(), tiny_transformer.calibration()
CHOSEN, _ = choose_scales(NODES, FORMATS, SEEN)


def exponent(ratio: float) -> int | None:
    return numerics.power_of_two_exponent(ratio)


def test_every_stored_value_has_its_format_and_a_float32_scale():
    assert CHOSEN.keys() == FORMATS.values.keys()
    for name, params in CHOSEN.items():
        assert params.dtype == FORMATS.values[name].dtype
        assert params.scale == float(np.float32(params.scale))
        assert params.zero_point == 0 or params.dtype == "uint8"


@pytest.mark.parametrize("method", sorted(OBSERVERS))
def test_logits_reach_the_unit_of_the_softmax_table_by_a_shift(method: str):
    chosen, _ = choose_scales(NODES, FORMATS, SEEN, method=method)
    for block in ("blocks.0", "blocks.1"):
        q, k = (chosen[f"{block}.qkv.{name}.bias"].scale for name in "qk")
        scale = (tiny_transformer.WIDTH // tiny_transformer.HEADS) ** -0.5
        found = exponent(q * k * scale * math.log2(math.e) * numerics.STEPS_PER_OCTAVE)
        assert found is not None
        assert found >= 0


def test_the_tie_moves_no_scale_by_more_than_a_quarter_octave():
    for name in ("blocks.0.qkv.q.bias", "blocks.0.qkv.k.bias"):
        free, _ = SEEN.values[name].quantizer(8, True, "mse")
        assert abs(math.log2(CHOSEN[name].scale / free)) < 0.2501


def test_a_region_shares_the_scale_that_holds_its_widest_value():
    trunk = [name for name, fmt in FORMATS.values.items() if fmt.region == "x"]
    assert len({CHOSEN[name].scale for name in trunk}) == 1
    reach = max(float(np.abs(SEEN.values[n].histogram.maximum)) for n in trunk)
    assert CHOSEN["x"].scale * 32767 >= TRUNK_HEADROOM * reach * 0.9999


def test_no_codes_are_spent_where_gelu_is_zero():
    params = CHOSEN["blocks.0.fc1.bias"]
    assert -params.zero_point * params.scale >= GELU_FLOOR - params.scale


def test_a_second_storage_is_reached_by_a_shift():
    also = replace(FORMATS.values["add.4"], also_uint8=True)
    formats = replace(FORMATS, values={**FORMATS.values, "add.4": also})
    chosen, second = choose_scales(NODES, formats, SEEN)
    assert second.keys() == {"add.4"}
    shift = exponent(chosen["add.4"].scale / second["add.4"].scale)
    assert shift is not None
    assert shift >= 0


@pytest.mark.parametrize("name", ["add.4", "add.12"])
def test_the_trunk_moves_so_that_its_copy_gets_the_scale_it_wants(name: str):
    also = replace(FORMATS.values[name], also_uint8=True)
    chosen, second = choose_scales(NODES, replace(FORMATS, values={**FORMATS.values, name: also}), SEEN)
    wanted, _ = SEEN.values[name].quantizer(8, False, "mse")
    assert second[name].scale == pytest.approx(wanted, rel=1e-5)
    assert 1 <= chosen[name].scale / CHOSEN[name].scale < 2  # CHOSEN has no copy


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_few_bits_are_limits_that_hold_the_zero_point(bits: int):
    formats = value_formats(NODES, lambda name: True, dict.fromkeys(NODES.by_name, Precision(4, bits)))
    also = replace(formats.values["add.4"], also_uint8=True, bits=bits)
    chosen, second = choose_scales(NODES, replace(formats, values={**formats.values, "add.4": also}), SEEN)
    chosen = {**chosen, "add.4.uint8": second["add.4"]}
    few = {name: params for name, params in chosen.items() if params.limits is not None}
    assert {params.stored_as for params in few.values()} == {f"uint{bits}", f"int{bits}"}
    assert "add.4.uint8" in few
    assert "blocks.0.fc1.bias" not in few
    assert all(params.low <= params.zero_point <= params.high for params in chosen.values())


def test_more_bits_never_have_a_larger_error():
    errors = []
    for bits in range(3, 9):
        formats = value_formats(NODES, lambda name: True, dict.fromkeys(NODES.by_name, Precision(8, bits)))
        chosen, _ = choose_scales(NODES, formats, SEEN)
        own = []
        for name, fmt in FORMATS.values.items():
            symmetric, params = fmt.dtype == "int8", chosen[name]
            if fmt.dtype != "int16":
                scale, zero = np.array([params.scale]), np.array([params.zero_point])
                width = formats.values[name].bits
                own.append(expected_error(SEEN.values[name].histogram, scale, zero, width, symmetric)[0])
        errors.append(own)
    assert (np.diff(errors, axis=0) <= 0).all()
