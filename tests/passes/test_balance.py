import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_same_function, const
from tests.passes.test_balance_groups import conv_chain
from tests.strategies import ModuleBuilder, seeds, transformer_block
from tvmq import reference
from tvmq.passes.balance import Balance, Balancing
from tvmq.passes.balance_groups import find_groups
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.rebuild import rebuild


def random_balancing(rng, group):
    factors = np.exp2(rng.uniform(-4, 4, group.channels)).astype(np.float32)
    shifts = rng.normal(0, 2, group.channels).astype(np.float32) * group.shiftable
    return Balancing(factors, shifts)


def everything(mod, seed=0):
    rng = np.random.default_rng(seed)
    return {group.site: random_balancing(rng, group) for group in find_groups(mod)}


@settings(deadline=None, max_examples=15)
@given(seeds, st.booleans())
def test_the_float_function_stays_the_same(seed, bare):
    mod = transformer_block(seed, spread=1.0)
    mod = without_biases(mod) if bare else mod
    decided = everything(mod, seed)
    assert set(decided) == {"norm1", "norm2", "attn.v"}
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
    before, after = reference.run(mod, [x])[0], reference.run(Balance(decided)(mod), [x])[0]
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())


def without_biases(mod):
    """Return the block whose linears have none."""
    return rebuild(mod, lambda _graph, var, value: value.args[0] if var.name.endswith(".bias") else None)


def test_a_linear_without_bias_gets_one_and_the_form_stays_canonical():
    mod = canonicalize(without_biases(transformer_block()))
    after = Balance(everything(mod))(mod)
    added = set(calls(after)) - set(calls(mod))
    assert added == {f"attn.{x}.bias" for x in ("q", "k", "v", "proj")} | {"mlp.fc1.bias"}
    tvm.ir.assert_structural_equal(canonicalize(after), after, map_free_vars=True)
    tvm.ir.assert_structural_equal(Balance({})(mod), mod)


def test_convolutions_are_balanced_through_relu_in_triples():
    mod = conv_chain(groups=8)
    found = [(g.site, g.value, g.bias, [(c.site, c.mixes) for c in g.consumers]) for g in find_groups(mod)]
    assert found == [
        ("expand", "act1", "expand.bias", [("middle", False)]),
        ("middle", "act2", "middle.bias", [("project", True)]),
    ]
    assert not any(group.shiftable for group in find_groups(mod))
    assert_same_function(mod, Balance(everything(mod))(mod))
    assert_same_function(conv_chain(), Balance(everything(conv_chain()))(conv_chain()))


def test_a_max_pool_is_seen_through():
    mod = conv_chain(pool=True)
    assert [group.value for group in find_groups(mod)] == ["pool", "act2"]
    assert_same_function(mod, Balance(everything(mod))(mod))


def test_channels_through_relu_are_not_shifted():
    mod = conv_chain()
    with pytest.raises(ValueError, match="channels of 'expand' cannot be shifted"):
        Balance({"expand": Balancing(np.ones(8, np.float32), np.ones(8, np.float32))})(mod)


@pytest.mark.parametrize("masked", [False, True])
def test_v_is_shifted_only_where_no_mask_may_hide_all_keys(masked):
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    seen = relax.Var("seen", relax.TensorType((1, 1, 4, 4), "bool"))
    q, k, v = (make.bind(f"r{n}", op.reshape(make.linear(n, x, 8), (1, 4, 2, 4))) for n in "qkv")
    zero, lowest = relax.const(np.float32(0)), relax.const(np.finfo(np.float32).min)
    bias = make.bind("mask", op.where(seen, zero, lowest)) if masked else make.constant(1, 2, 4, 4)
    mixed = make.bind("attn", op.nn.attention_bias(q, k, v, bias))
    mod = make.module([x, seen], make.linear("proj", make.bind("merge", op.reshape(mixed, (1, 4, 8))), 8))
    assert [(g.site, g.shiftable) for g in find_groups(mod)] == [("v", not masked)]
    assert_same_function(mod, Balance(everything(mod))(mod))


def test_what_does_not_fit_is_refused():
    mod, one = transformer_block(), Balancing(np.ones(1, np.float32), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="'head' is no group of this module; it has"):
        Balance({"head": one})(mod)
    with pytest.raises(ValueError, match="'norm1' has 8 channels, not 1"):
        Balance({"norm1": one})(mod)


def calls(mod):
    return {b.var.name: b.value for block in mod["main"].body.blocks for b in block.bindings}


M, T = np.float32([2.0, 0.5, 1.0, 8.0]), np.float32([1.0, 0.0, -2.0, 4.0])


def test_factors_and_shifts_move_from_the_layer_norm_into_the_linears():
    GAMMA, BETA, W, B, V = const(4), const(4, seed=1), const(4, 3, seed=2), const(3), const(4, 3, seed=4)
    GAMMA_M = relax.const(GAMMA.value.numpy() / M)
    BETA_M = relax.const((BETA.value.numpy() - T) / M)
    W_M, V_M = (relax.const(c.value.numpy() * M[:, None]) for c in (W, V))
    B_T = relax.const((B.value.numpy() + T.astype(float) @ W.value.numpy().astype(float)).astype("f4"))
    V_T = relax.const((T.astype(float) @ V.value.numpy().astype(float)).astype("f4"))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                norm = R.nn.layer_norm(x, GAMMA, BETA, axes=[-1])
                fc = R.matmul(norm, W)
                biased = R.add(fc, B)
                bare = R.matmul(norm, V)
                out = R.add(biased, bare)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                norm = R.nn.layer_norm(x, GAMMA_M, BETA_M, axes=[-1])
                fc = R.matmul(norm, W_M)
                biased = R.add(fc, B_T)
                bare = R.matmul(norm, V_M)
                bare_bias = R.add(bare, V_T)
                out = R.add(biased, bare_bias)
                R.output(out)
            return out

    after = Balance({"norm": Balancing(M, T)})(Before)
    tvm.ir.assert_structural_equal(after, Expected, map_free_vars=True)
    assert_same_function(Before, after)


def test_factors_move_from_one_convolution_into_the_next():
    W, B, V = const(4, 3, 1, 1), const(1, 4, 1, 1, seed=1), const(2, 4, 3, 3, seed=2)
    along = M[:, None, None, None]
    W_M, B_M = relax.const(W.value.numpy() / along), relax.const(B.value.numpy() / M.reshape(1, 4, 1, 1))
    V_M = relax.const(V.value.numpy() * M.reshape(1, 4, 1, 1))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")):
            with R.dataflow():
                made = R.nn.conv2d(x, W)
                biased = R.add(made, B)
                active = R.nn.relu(biased)
                out = R.nn.conv2d(active, V, padding=[1, 1, 1, 1])
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 5, 5), "float32")):
            with R.dataflow():
                made = R.nn.conv2d(x, W_M)
                biased = R.add(made, B_M)
                active = R.nn.relu(biased)
                out = R.nn.conv2d(active, V_M, padding=[1, 1, 1, 1])
                R.output(out)
            return out

    after = Balance({"made": Balancing(M, np.zeros(4, np.float32))})(Before)
    tvm.ir.assert_structural_equal(after, Expected, map_free_vars=True)
    assert_same_function(Before, after)
