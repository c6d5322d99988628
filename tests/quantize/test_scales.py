import math
from dataclasses import replace

import numpy as np
import pytest

from tests import tiny_transformer
from tvmq import numerics
from tvmq.calibrate.observers import OBSERVERS
from tvmq.quantize.scales import GELU_FLOOR, TRUNK_HEADROOM, choose_scales

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
