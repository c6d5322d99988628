"""Candidates begin with what there is, and all of them can be stored."""

from hypothesis import given
from hypothesis import strategies as st

from tvmq.formats import QuantParams
from tvmq.quantize.step_candidates import moved, narrowed


@given(st.floats(-50, 0), st.floats(0.01, 50), st.integers(3, 8))
def test_narrowed_ranges_hold_zero_and_are_never_wider(low, high, bits):
    own = QuantParams(0.1, 0, "uint8", (0, 2**bits - 1))
    first, *others = narrowed(low, high, own, bits)
    assert first == own
    for each in others:
        assert each.limits == own.limits
        assert each.scale * (2**bits - 1) <= (high - low) * 1.001
        assert each.real_limits[0] <= 0 <= each.real_limits[1]


@given(st.integers(0, 12), st.integers(0, 255))
def test_a_shift_reaches_every_copy_from_the_trunk(shift, zero):
    trunk = QuantParams(0.003, 0, "int16")
    own = QuantParams(0.003 * 2**shift, zero, "uint8")
    found = list(moved(trunk, own))
    assert found[0] == own
    scales = {each.scale for each in found}
    assert min(scales) >= trunk.scale
    assert scales <= {own.scale * 2.0**step for step in (-2, -1, 0, 1)}
    assert len({each.zero_point for each in found}) > 1
