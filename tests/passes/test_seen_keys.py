import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq import reference
from tvmq.passes.rebuild import dtype_of, op_name, rebuild, shape_of
from tvmq.passes.seen_keys import seen_keys

LOWEST = float(np.finfo(np.float32).min)
GIVEN = torch.tensor([[1, 0, 1, 1, 0]])


def number(value):
    return relax.const(np.float32(value))


def as_boolean(make_mask, dtype="int64", given=GIVEN):
    """Return what seen_keys makes of make_mask(bind, mask input [1, 5]): its value, its shape, the mask's."""
    make = ModuleBuilder(np.random.default_rng(0))
    var = relax.Var("given", relax.TensorType((1, 5), dtype))
    mask = make_mask(lambda e: make.bind(f"t{len(make.bindings)}", e), var)
    found = []

    def rule(graph, _, value):
        if op_name(value) != "nn.relu":
            return None
        seen = seen_keys(graph, value.args[0])
        found.append(None if seen is None else (dtype_of(seen), shape_of(seen)))
        if seen is None:
            return None
        return op.broadcast_to(graph.emit(op.astype(seen, "float32")), shape_of(value))

    after = rebuild(make.module([var], op.nn.relu(mask)), rule)
    if found[0] is None:
        return None
    assert found[0][0] == "bool"
    return reference.run(after, [given.to(getattr(torch, dtype))])[0].numpy(), found[0][1]


def to_4d(bind, x):
    return bind(op.reshape(x, (1, 1, 1, 5)))


def sdpa(bind, given):
    seen = to_4d(bind, bind(op.astype(given, "bool")))
    both = bind(op.bitwise_and(relax.const(np.ones((1, 1, 4, 5), bool)), seen))
    return bind(op.where(both, number(0), number(-np.inf)))


def inverted(bind, given):
    return bind(op.subtract(number(1), bind(op.astype(to_4d(bind, given), "float32"))))


def legacy(bind, given):
    return bind(op.multiply(inverted(bind, given), number(LOWEST)))


def filled(bind, given):
    rest = inverted(bind, given)
    return bind(op.where(bind(op.astype(rest, "bool")), number(LOWEST), rest))


def negated(bind, given):
    hidden = bind(op.logical_not(to_4d(bind, bind(op.astype(given, "bool")))))
    return bind(op.where(hidden, number(-1e9), number(0)))


def viewed(bind, given):
    mask = bind(op.multiply(bind(op.subtract(number(1), bind(op.astype(given, "float32")))), number(-1e4)))
    return bind(op.broadcast_to(to_4d(bind, mask), (1, 1, 4, 5)))


@pytest.mark.parametrize("form", [sdpa, legacy, filled, negated, viewed])
def test_every_exporters_mask_is_the_same_boolean(form):
    seen, shape = as_boolean(form)
    assert shape == (1, 1, 1, 5)
    assert (seen == GIVEN.numpy()).all()


def test_a_mask_of_floats_is_no_mask_where_they_are_multiplied():
    assert as_boolean(legacy, "float32") is None  # 0.5 hides a key as 0 does, and 1.001 adds to its score


def test_a_mask_of_floats_that_fills_hides_all_but_one():
    half = torch.tensor([[1, 0, 0.5, 1, 2]])
    seen, _ = as_boolean(filled, "float32", half)
    assert (seen == (half == 1).numpy()).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
@pytest.mark.parametrize("form", [legacy, filled])
def test_booleans_and_integers_of_any_width_are_masks(form, dtype):
    assert (as_boolean(form, dtype)[0] == GIVEN.numpy()).all()


def test_integers_other_than_0_and_1_are_hidden_as_the_exporter_hides_them():
    counts = torch.tensor([[1, 0, 2, 1, -1]])
    assert (as_boolean(filled, given=counts)[0] == (counts == 1).numpy()).all()


def test_a_cast_before_the_views_is_found():
    def early(bind, given):
        mask = to_4d(bind, bind(op.astype(given, "float32")))
        return bind(op.multiply(bind(op.subtract(number(1), mask)), number(-1e4)))

    assert (as_boolean(early)[0] == GIVEN.numpy()).all()
    assert as_boolean(early, "float32") is None


def test_what_is_kept_where_nothing_is_hidden_must_be_what_the_condition_tests():
    def unrelated(bind, given):
        hide = bind(op.logical_not(to_4d(bind, bind(op.astype(given, "bool")))))
        weights = relax.const(np.linspace(0, 1, 5, dtype=np.float32).reshape(1, 1, 1, 5))
        return bind(op.where(hide, number(-1e9), bind(op.subtract(number(1), weights))))

    def of_another(bind, given):
        rest = inverted(bind, given)
        other = bind(op.astype(bind(op.add(rest, number(1))), "bool"))
        return bind(op.where(other, number(LOWEST), rest))

    assert as_boolean(unrelated) is None
    assert as_boolean(of_another) is None


def test_a_causal_mask_keeps_its_rows():
    def causal(bind, given):
        seen = to_4d(bind, bind(op.astype(given, "bool")))
        both = bind(op.bitwise_and(seen, relax.const(np.tril(np.ones((1, 1, 4, 5), bool)))))
        return bind(op.where(both, number(0), number(LOWEST)))

    seen, shape = as_boolean(causal)
    assert shape == (1, 1, 4, 5)
    assert (seen == np.tril(np.ones((4, 5))) * GIVEN.numpy()).all()


def test_what_hides_too_little_is_no_mask():
    def soft(bind, given):
        return bind(op.multiply(inverted(bind, given), number(-4)))

    assert as_boolean(soft) is None
    assert as_boolean(lambda bind, given: to_4d(bind, bind(op.astype(given, "float32")))) is None
