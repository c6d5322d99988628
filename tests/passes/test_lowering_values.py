"""Stored values: emitted once, in either shape, with the logical order kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tests.passes.lowered import lowered_value
from tvmq.formats import QuantParams
from tvmq.passes.layouts import RowsLayout, channels_last
from tvmq.passes.lowering_values import Emitter, Stored, within

PARAMS = QuantParams(0.5, 3, "uint8")
NCHW = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(1, 2, 3, 4)


def as_channels_first(emit: Emitter, stored: Stored) -> Stored:
    return emit.with_layout(stored, RowsLayout((1, 3, 4), 1, (2,)))


def test_rows_hold_one_position_with_all_its_channels_each():
    rows = lowered_value(NCHW, PARAMS, lambda emit, x: emit.rows(as_channels_first(emit, x)))
    assert rows.tolist() == NCHW.transpose(0, 2, 3, 1).reshape(12, 2).tolist()


def test_the_way_to_rows_and_back_is_the_identity():
    def there_and_back(emit: Emitter, x: Stored) -> relax.Expr:
        first = as_channels_first(emit, x)
        return emit.dense(Stored(PARAMS, first.layout, rows_var=emit.rows(first)))

    assert lowered_value(NCHW, PARAMS, there_and_back).equal(torch.from_numpy(NCHW))


def test_a_producer_is_emitted_on_first_use_and_once():
    emit, calls = Emitter(), []
    var = relax.Var("x", relax.TensorType((3, 2), "uint8"))
    value = Stored(PARAMS, channels_last((3, 2)), force=lambda: calls.append(1) or var)
    assert not calls
    assert emit.rows(value).same_as(emit.dense(value))
    assert len(calls) == 1


@given(
    st.floats(1e-3, 1.0),
    st.integers(0, 255),
    st.sampled_from([None, (0.0, np.inf), (0.0, 6.0), (-1.0, 2.5), (400.0, 500.0)]),
)
def test_a_clip_of_codes_is_the_clip_of_what_they_stand_for(scale, zero_point, bounds):
    limited = within(QuantParams(scale, zero_point, "uint8"), bounds)
    codes = np.arange(256)
    real = scale * (codes - zero_point)
    wanted = real if bounds is None else np.clip(real, *bounds)
    nearest = np.clip(np.floor(wanted / scale + 0.5) + zero_point, 0, 255)
    np.testing.assert_array_equal(np.clip(codes, limited.low, limited.high), nearest)


@pytest.mark.parametrize("returned", ["one", "two", "the same twice"])
def test_outputs_are_plain_variables(returned):
    emit = Emitter()
    x = relax.Var("x", relax.TensorType((2,), "int8"))
    a, b = emit(relax.op.abs(x), "a"), emit(relax.op.negative(x), "b")
    result = {"one": a, "two": relax.Tuple([a, b]), "the same twice": relax.Tuple([a, a])}[returned]
    main = emit.finish(relax.Function([x], x, x.ty), result)["main"]
    fields = main.body.body.fields if returned != "one" else [main.body.body]
    assert [str(f.name) for f in fields] == {"one": ["a"], "two": ["a", "b"]}.get(returned, ["a", "a"])
    assert not any(isinstance(f, relax.DataflowVar) for f in fields)
