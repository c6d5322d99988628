"""A depthwise convolution is one call with its bias and its clip, and the function stays."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.relax import op

from tests.passes.qdq_graphs import HIDDEN, NORMED, QdqBuilder, float_input, kernels, random_input
from tvmq import reference
from tvmq.passes.composites import attributes
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.verify_level import verify


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (0, 1, 2, 0)), ((5, 5), (2, 2), (2, 2)), ((1, 1), (1, 1), 0)],
)
def test_a_convolution_of_each_channel_is_integer(kernel, strides, padding):
    make, x = QdqBuilder(), float_input(2, 6, 7, 8)
    weight = make.weight((6, 1, *kernel), 0, -8)
    conv = make.bind("dw", op.nn.conv2d(make.stored("x", x, NORMED), weight, strides, padding, groups=6))
    biased = make.bind("dw.bias", op.add(conv, make.constant(1, 6, 1, 1)))
    qdq = make.module([x], make.stored("y", make.bind("clip", op.clip(biased, 0, 6)), HIDDEN))
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == [("depthwise", "dw")]
    verify(lowered, "integer")
    composite = next(f for g, f in lowered.functions.items() if str(g.name_hint) != "main")
    assert (attributes(composite)["low"], attributes(composite)["high"]) == (100, 196)
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, rtol=0, atol=HIDDEN.scale)
    assert (values[0] == values[1]).float().mean() > 0.9
    assert values[0].unique().numel() > 5


@pytest.mark.parametrize(
    ("outputs", "groups", "more"),
    [(12, 6, {}), (6, 3, {}), (6, 6, {"dilation": (2, 2)})],
    ids=["two filters a channel", "two channels a group", "dilated"],
)
def test_other_groups_stay_float(outputs, groups, more):
    make, x = QdqBuilder(), float_input(1, 6, 7, 8)
    weight = make.weight((outputs, 6 // groups, 3, 3), 0, -8)
    conv = op.nn.conv2d(make.stored("x", x, NORMED), weight, groups=groups, **more)
    lowered = LowerInteger()(make.module([x], make.stored("y", make.bind("dw", conv), HIDDEN)))
    assert kernels(lowered) == []
    assert "nn.conv2d" in [op_name(b.value) for b in bindings(lowered["main"])]
