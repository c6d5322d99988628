import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq import numerics
from tvmq.passes.rebuild import bindings
from tvmq.passes.score_terms import logit_biases, score_terms


def number(value):
    return relax.const(np.float32(value))


def terms_of(make_bias, seen_shape=(2, 1, 1, 5)):
    """Return the terms of the bias that make_bias(make, seen) binds, and seen."""
    make = ModuleBuilder(np.random.default_rng(0))
    seen = relax.Var("seen", relax.TensorType(seen_shape, "bool"))
    bias = make_bias(make, seen)
    values = {b.var: b.value for b in bindings(make.module([seen], bias)["main"])}
    return score_terms(lambda e: values.get(e, e) if isinstance(e, relax.Var) else e, bias), seen


def test_no_bias_and_a_constant():
    assert score_terms(lambda e: e, None).constant is None
    found = score_terms(lambda e: e, relax.const(np.ones((1, 2, 5, 5), np.float32)))
    assert found.seen is None
    assert found.constant.shape == (1, 2, 5, 5)


@pytest.mark.parametrize(("hidden", "known"), [(-np.inf, True), (-1e4, True), (-5.0, False)])
def test_a_choice_of_zero_or_nothing_is_a_mask(hidden, known):
    terms, seen = terms_of(lambda make, s: make.bind("mask", op.where(s, number(0), number(hidden))))
    assert (terms is not None) == known
    assert not known or terms.seen.same_as(seen)


def test_a_mask_and_a_constant_are_two_terms():
    def both(make, seen):
        mask = make.bind("mask", op.where(seen, number(0), number(-1e9)))
        return make.bind("sum", op.add(mask, relax.const(np.ones((1, 2, 5, 5), np.float32))))

    terms, seen = terms_of(both)
    assert terms.seen.same_as(seen)
    assert terms.constant.shape == (1, 2, 5, 5)


def test_other_masks_are_unknown():
    assert terms_of(lambda make, s: make.bind("x", op.where(s, number(-1e9), number(0))))[0] is None
    heads = lambda make, s: make.bind("x", op.where(s, number(0), number(-1e9)))  # noqa: E731
    assert terms_of(heads, (2, 3, 1, 5))[0] is None
    assert terms_of(lambda make, s: make.bind("x", op.astype(s, "float32")))[0] is None


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from([1, 4]), st.integers(0, 99))
def test_biases_add_up_to_the_constant(period, repeats, heads, seed):
    rng = np.random.default_rng(seed)
    position = rng.normal(0, 3, (1, heads, 4, 5)).astype(np.float32)
    window = rng.choice([0, -100.0, -np.inf], (period, 1, 4, 5)).astype(np.float32)
    constant = np.tile(position + window, (repeats, 1, 1, 1))
    found = logit_biases(constant, (period * repeats, heads, 4, 5))
    assert len(found) == (2 if period > 1 and heads > 1 else 1)
    total = sum(np.broadcast_to(b, (period, heads, 4, 5)).astype(int) for b in found)
    total = np.tile(total, (repeats, 1, 1, 1))
    exact = constant.astype(np.float64) * np.log2(np.e) * numerics.STEPS_PER_OCTAVE
    finite = np.isfinite(constant)
    assert (np.abs(total - exact)[finite] <= 1.01).all()
    assert (total[~finite] <= -(2**15) + 600).all()


def test_a_bias_of_its_own_for_each_batch_and_head_stays_one():
    constant = np.random.default_rng(0).normal(0, 3, (2, 3, 4, 5)).astype(np.float32)
    assert [b.shape for b in logit_biases(constant, (2, 3, 4, 5))] == [(2, 3, 4, 5)]
    assert logit_biases(None, (2, 3, 4, 5)) == ()
    assert [b.shape for b in logit_biases(constant[:1, :1, :1], (2, 3, 4, 5))] == [(1, 1, 4, 5)]
