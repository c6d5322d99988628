import json

import numpy as np
import pytest

from tests import tiny_transformer
from tests.tiny_transformer import calibration, formats, nodes
from tvmq.formats import Quantization, QuantParams
from tvmq.numerics import power_of_two_exponent
from tvmq.passes.composites import attributes
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.integer_parameters import product_parameters
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.verify_level import verify
from tvmq.plan.formats import swallowed, value_formats
from tvmq.quantize.choose import choose, gram_inputs
from tvmq.quantize.site_weights import bias_of, constant_of, matrix_of
from tvmq.quantize.weights import quantize_weight, smallest_scales
from tvmq.spec import Precision

SITES = [name for name, node in nodes().by_name.items() if node.kind == "linear"]


def test_every_requantize_is_a_shift_of_0_to_31():
    numbers = tiny_transformer.quantization()
    fused = swallowed(nodes(), formats().integer)
    for site in SITES:
        out = site
        while out in fused:
            out = fused[out]
        if out not in numbers.values:
            assert site == "head"  # float straight from the accumulator
            continue
        source = nodes().by_name[site].inputs[0]
        while source not in numbers.values:
            source = nodes().by_name[source].inputs[0]
        ratios = numbers.values[source].scale * numbers.weights[site].scale / numbers.values[out].scale
        assert all(power_of_two_exponent(float(ratio)) in range(32) for ratio in ratios)


@pytest.mark.parametrize("bits", [Precision(4, 8), Precision(4, 4), Precision(2, 3)])
def test_few_bits_need_no_fixed_point(bits: Precision):
    low = value_formats(nodes(), lambda name: True, dict.fromkeys(nodes().by_name, bits))
    numbers = choose(nodes(), low, calibration())
    assert {weight.bits for weight in numbers.weights.values()} == {bits.weight_bits}
    lowered = LowerInteger()(InsertQdq(numbers)(tiny_transformer.canonical()))
    verify(lowered, "integer")
    described = [attributes(func) for func in lowered.functions.values()]
    assert not any(found.get("fixed_point") for found in described)
    assert sum(found.get("kernel") == "linear" for found in described) == len(SITES)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("zero_point", [0, 60, 255])
def test_a_channel_of_zeros_or_many_inputs_need_no_fixed_point(bits: int, zero_point: int):
    random = np.random.default_rng(bits)
    x, out = QuantParams(2.0**-5, 117, "uint8"), QuantParams(2.0**-3, zero_point, "uint8")
    dead = random.standard_normal((64, 16))
    dead[:, 3] = 0
    for weight in (dead, random.standard_normal((25088, 16)) * 0.01):
        bias = random.standard_normal(weight.shape[1])
        smallest = smallest_scales(weight, bias, x, out)
        limits = (-(1 << bits - 1), (1 << bits - 1) - 1)
        chosen = quantize_weight(weight, None, out.scale / x.scale, smallest, bits, limits=limits)
        product = product_parameters("fc", x, chosen, bias, out)
        assert not product.numbers.fixed_point
        assert product.bits == bits
        free = quantize_weight(weight, None, None, smallest, bits, limits=limits)
        errors = [np.square(each.values * each.scale - weight).sum(0) for each in (chosen, free)]
        assert (errors[0] <= 2 * errors[1] + 1e-9).all()


@pytest.mark.parametrize("bits", [Precision(2, 8), Precision(4, 8)])
def test_biases_make_up_for_the_mean_error_of_the_values_that_are_stored(bits: Precision):
    low = value_formats(nodes(), lambda name: True, dict.fromkeys(nodes().by_name, bits))
    numbers = choose(nodes(), low, calibration())
    for site, moments in calibration().linear_inputs.items():
        node = nodes().by_name[site]
        bias = bias_of(nodes(), node)
        found = numbers.weights[site]
        if bias is None:
            continue
        moved = found.values * found.scale.astype(np.float64) - matrix_of(node)
        left = moments.mean @ moved + (numbers.biases[bias.name] - constant_of(bias)).ravel()
        assert np.abs(left).max() < 1e-5


@pytest.mark.parametrize("requantize", ["pot", "fixed_point"])
def test_weights_come_back_within_a_few_steps(requantize: str):
    numbers = tiny_transformer.quantization(requantize)
    assert sorted(numbers.weights) == sorted(SITES)
    for site in SITES:
        exact = nodes().by_name[site].call.args[1].value.numpy()
        found = numbers.weights[site]
        assert found.values.shape == exact.shape
        error = np.abs(found.values * found.scale - exact)
        assert (error.max(axis=0) <= 0.35 * np.abs(exact).max(axis=0)).all()  # clipping, and errors passed on
        # Half a step where nearest; weights that make up for others' errors go further.
        assert np.median(error / found.scale) <= 0.5


def test_linear_sites_want_the_moments_of_what_they_read():
    assert gram_inputs(nodes(), formats())["blocks.0.fc2"] == "gelu.0"
    assert sorted(gram_inputs(nodes(), formats())) == sorted(SITES)


def test_progress_counts_every_site_to_the_end():
    seen: list[tuple[str, int, int]] = []
    choose(nodes(), formats(), calibration(), progress=lambda *report: seen.append(report))
    assert seen == [("quantize", done, len(SITES)) for done in range(len(SITES) + 1)]


def test_all_numbers_survive_json():
    numbers = tiny_transformer.quantization("pot")
    back = Quantization.from_json(json.loads(json.dumps(numbers.to_json())))
    assert back.to_json() == numbers.to_json()
    assert back.values == numbers.values
    for site, weight in numbers.weights.items():
        np.testing.assert_array_equal(back.weights[site].values, weight.values)


def test_very_wide_inputs_keep_no_gram_matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tvmq.quantize.choose.WIDEST", tiny_transformer.WIDTH)
    wide = {"blocks.0.fc2", "blocks.1.fc2"}
    assert wide & set(SITES) == wide
    assert set(gram_inputs(nodes(), formats())) == set(SITES) - wide
