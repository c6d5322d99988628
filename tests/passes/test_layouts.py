"""A layout is a promise about where a value's numbers lie; NumPy says where they do."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tvmq.passes.layouts import RowsLayout, channels_last

dims = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> RowsLayout:
    rows, channel = draw(dims), draw(dims.filter(len))
    return RowsLayout(rows, draw(st.integers(0, len(rows))), channel)


def stored(layout: RowsLayout, logical: np.ndarray) -> np.ndarray:
    """Return the [rows, channels] matrix that holds logical."""
    return logical.transpose(layout.to_stored_order()).reshape(layout.matrix)


def numbered(layout: RowsLayout) -> np.ndarray:
    return np.arange(math.prod(layout.shape)).reshape(layout.shape)


@given(layouts(), st.data())
def test_a_permutation_that_keeps_the_storage_is_seen_and_any_other_is_not(layout, data):
    axes = data.draw(st.permutations(range(len(layout.shape))))
    moved = numbered(layout).transpose(axes)
    after = layout.permuted(axes)
    if after is not None:
        assert after.shape == moved.shape
        np.testing.assert_array_equal(stored(after, moved), stored(layout, numbered(layout)))


@given(layouts(), st.data())
def test_a_reshape_that_keeps_the_storage_is_seen(layout, data):
    size = math.prod(layout.shape)
    first = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    rest = size // first
    second = data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
    shape = (first, second, rest // second)
    after = layout.reshaped(shape)
    assume(after is not None)
    assert after.shape == shape
    np.testing.assert_array_equal(
        stored(after, numbered(layout).reshape(shape)), stored(layout, numbered(layout))
    )


def test_what_models_do_costs_nothing():
    nchw = RowsLayout((2, 5, 7), 1, (3,))
    assert nchw.permuted([0, 2, 3, 1]) == channels_last((2, 5, 7, 3))
    assert nchw.reshaped((2, 3, 35)) == RowsLayout((2, 35), 1, (3,))
    assert channels_last((1, 6, 8)).reshaped((1, 6, 2, 4)) == channels_last((1, 6, 2, 4), 2)


def test_what_moves_numbers_is_refused():
    assert channels_last((2, 6, 8)).permuted([1, 0, 2]) is None  # rows change order
    assert channels_last((6, 2, 4), 2).permuted([0, 2, 1]) is None  # so do channels
    assert channels_last((6, 8)).reshaped((8, 6)) is None  # channels are cut


def test_axes_of_one_element_may_stand_anywhere():
    layout = channels_last((1, 6, 8))
    assert all(layout.permuted(axes) is not None for axes in itertools.permutations(range(3)))
