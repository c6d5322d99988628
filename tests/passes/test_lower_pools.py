"""Poolings between convolutions are integer, and what they read and give is stored alike."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.relax import op

from tests.passes.qdq_graphs import HIDDEN, NORMED, QdqBuilder, float_input, kernels, random_input
from tvmq import reference
from tvmq.formats import QuantParams
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.verify_level import verify

WIDE = QuantParams(NORMED.scale, 0, "int16")


@pytest.mark.parametrize("stored", [NORMED, WIDE])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (op.nn.max_pool2d, ((3, 3), (2, 2), (1, 1))),
        (op.nn.avg_pool2d, ((2, 2), (2, 2))),
        (op.nn.adaptive_avg_pool2d, ((1, 1),)),
        (op.mean, ([2, 3],)),
        (op.mean, ([1, 2], True)),
    ],
    ids=["max", "average", "adaptive", "mean of pixels", "mean of rows"],
)
def test_a_pooling_is_one_call(function, args, stored):
    make, x = QdqBuilder(), float_input(2, 6, 8, 4)
    out = stored if function is op.nn.max_pool2d else HIDDEN
    pooled = make.bind("pool", function(make.stored("x", x, stored), *args))
    qdq = make.module([x], make.stored("y", pooled, out))
    lowered = LowerInteger()(qdq)
    assert kernels(lowered) == [("pool", "pool")]
    verify(lowered, "integer")
    values = [reference.run(mod, [random_input(qdq)])[0] for mod in (qdq, lowered)]
    np.testing.assert_allclose(*values, rtol=0, atol=1.01 * out.scale)
    assert (values[0] == values[1]).float().mean() > 0.8
    assert values[0].unique().numel() > 3


def test_a_largest_of_other_steps_stays_float():
    make, x = QdqBuilder(), float_input(2, 6, 8, 4)
    pooled = make.bind("pool", op.nn.max_pool2d(make.stored("x", x, NORMED), (2, 2)))
    lowered = LowerInteger()(make.module([x], make.stored("y", pooled, HIDDEN)))
    assert kernels(lowered) == []
