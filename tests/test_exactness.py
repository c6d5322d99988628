"""What is called exact has the same bits everywhere; what is not is an entry where it is quantized again."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from tvm.relax import op

from tests.passes.qdq_graphs import HIDDEN, NORMED, QdqBuilder, float_input, mlp, random_input
from tvmq import reference
from tvmq.exactness import Exactness, analyse, with_given_entries
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings


def mixed() -> tvm.IRModule:
    """An integer product, a float softmax, an integer product, and the float exp of a view of it."""
    make, x = QdqBuilder(), float_input(3, 8)
    first = make.product("first", make.stored("x", x, NORMED), 8, -8)
    between = make.bind("soft", op.nn.softmax(first))
    second = make.stored("second", make.product("second", make.stored("soft", between, NORMED), 8), HIDDEN)
    flat = make.bind("flat", op.reshape(second, (24,)))
    return LowerInteger()(make.module([x], make.bind("exp", op.exp(flat))))


def by_name(mod: tvm.IRModule) -> dict[str, Exactness]:
    analysis = analyse(mod)
    return {str(b.var.name): analysis.of(b.var) for b in bindings(mod["main"])}


def test_integers_from_one_rounding_of_the_inputs_are_exact():
    lowered = LowerInteger()(mlp())
    assert analyse(lowered).entries == ()
    assert set(by_name(lowered).values()) == {Exactness()}


def test_a_float_operation_makes_what_follows_inexact_until_it_is_quantized():
    mod = mixed()
    found = by_name(mod)
    assert [str(var.name) for var in analyse(mod).entries] == ["soft.q"]
    assert found["first"] == Exactness()  # float, but of one factor each
    assert found["soft"] == Exactness(("softmax",), portable=False)
    assert found["soft.q"] == found["second"] == Exactness((), portable=False)
    assert found["exp"].float_ops == ("exp",)


def test_readers_of_an_entry_read_what_is_given():
    mod = mixed()
    given = with_given_entries(mod, analyse(mod).entries)
    x = random_input(mod)
    (plain,) = reference.run(mod, [x])
    codes = reference.run_and_keep(mod, [x], analyse(mod).entries)[1][0]
    assert reference.run(given, [x, codes])[0].equal(plain)
    outputs, (kept,) = reference.run_and_keep(given, [x, torch.zeros_like(codes)], analyse(mod).entries)
    assert kept.equal(codes)  # the entry itself is still computed, for comparison
    assert not np.array_equal(outputs[0], plain)
