import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import float_arrays
from tvmq.calibrate.grids import (
    affine_parameters,
    fake_quantized,
    integer_range,
    range_with_zero,
    steps_of,
)


@settings(deadline=None, max_examples=60)
@given(float_arrays, st.sampled_from([2, 4, 6, 8, 16]), st.booleans())
def test_range_of_the_values_gives_a_grid_with_zero_and_both_ends(values, bits, symmetric):
    low, high = range_with_zero(float(values.min()), float(values.max()), symmetric)
    assert low <= min(values.min(), 0)
    assert high >= max(values.max(), 0)
    scale, zero_point = affine_parameters(np.array([low, high]), bits, symmetric)
    qmin, qmax = integer_range(bits, symmetric)
    assert steps_of(bits, symmetric) == qmax - qmin
    assert scale > 0
    assert zero_point == round(float(zero_point))
    assert qmin <= zero_point <= qmax
    assert (qmin - zero_point - 0.5001) * scale <= low
    assert high <= (qmax - zero_point + 0.5001) * scale


def test_empty_and_absent_ranges():
    assert range_with_zero(np.inf, -np.inf, False) == (0, 0)
    assert affine_parameters(np.zeros(2), 8, False) == (1, 0)
    assert range_with_zero(1.0, 2.0, False) == (0, 2)
    assert range_with_zero(-3.0, 2.0, True) == (-3, 3)


def test_fake_quantized_takes_the_nearest_of_the_grid_ties_upward():
    x = torch.tensor([-9.0, -0.75, -0.25, 0.0, 0.2, 0.25, 0.74, 9.0])
    by_hand = [-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 6.5]  # 4 bits: q - 2 in [-2, 13], step 0.5
    assert fake_quantized(x, 0.5, 2, 4, False).tolist() == by_hand
    assert fake_quantized(x, 0.5, 0, 3, True).tolist() == [-1.5, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 1.5]


def test_fake_quantized_by_column():
    x = torch.tensor([[1.0, 1.0], [-7.0, 0.3]])
    steps = torch.tensor([2.0, 0.25])
    assert fake_quantized(x, steps, 0, 8, True).tolist() == [[2.0, 1.0], [-6.0, 0.25]]
