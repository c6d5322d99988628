"""Layouts agree with NumPy's strides."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.passes.views import Layout

STEPS = st.lists(st.sampled_from(["merge", "split", "permute", "unsqueeze", "narrow"]), max_size=5)


def elements(layout):
    """Return the flat source indices that a layout walks, in its shape."""
    out = np.full((), layout.offset)
    for axis in layout.axes:
        for size, stride in axis:
            out = out[..., None] + np.arange(size) * stride
    return out.reshape(layout.shape)


@settings(deadline=None, max_examples=200)
@given(STEPS, st.randoms(use_true_random=False))
def test_a_layout_walks_what_numpy_walks(steps, random):
    shape = (2, 6, 4)
    array, layout = np.arange(48).reshape(shape), Layout.of(shape)
    for step in steps:
        axis = random.randrange(array.ndim)
        size = array.shape[axis]
        if step == "permute":
            order = random.sample(range(array.ndim), array.ndim)
            array, following = array.transpose(order), layout.permute(order)
        elif step == "narrow":
            begin = random.randrange(size)
            following = layout.narrow(axis, begin, size - begin)
            array = array if following is None else array.take(range(begin, size), axis)
        else:
            new = {"split": [size // 2, 2] if size % 2 == 0 else [size], "unsqueeze": [1, size]}.get(step)
            target = list(array.shape)
            if new is None and axis + 1 < array.ndim:
                target[axis : axis + 2] = [target[axis] * target[axis + 1]]
            elif new is not None:
                target[axis : axis + 1] = new
            following = layout.reshape(tuple(target))
            array = array if following is None else array.reshape(target)
        if following is None:
            return
        layout = following
        assert layout.shape == array.shape
        np.testing.assert_array_equal(elements(layout), array)


def test_equal_views_have_equal_layouts():
    by_head = Layout.of((2, 5, 3, 4)).permute([0, 2, 1, 3])
    detour = Layout.of((10, 12)).reshape((2, 5, 3, 2, 2))
    assert detour is not None
    detour = detour.permute([2, 0, 1, 3, 4]).permute([1, 0, 2, 3, 4]).reshape((2, 3, 5, 4))
    assert detour == by_head
    assert by_head.reshape((6, 5, 4)) != Layout.of((6, 5, 4))
