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
from tests.strategies import ModuleBuilder, exponents, seeds, transformer_block
from tvmq import reference
from tvmq.passes.balance import Balance, find_groups

HEADS_TIMES_DIM = 8


@settings(deadline=None, max_examples=20)
@given(seeds, st.fixed_dictionaries({}, optional={
    site: st.lists(exponents, min_size=HEADS_TIMES_DIM, max_size=HEADS_TIMES_DIM).map(tuple)
    for site in ("norm1", "norm2", "attn.v")
}))  # fmt: skip
def test_the_float_function_stays_the_same_bit_for_bit(seed, factors):
    mod = transformer_block(seed)
    x = torch.randn(1, 5, HEADS_TIMES_DIM, generator=torch.Generator().manual_seed(seed))
    before, after = reference.run(mod, [x]), reference.run(Balance(factors)(mod), [x])
    assert torch.equal(before[0], after[0])


def test_groups_of_a_transformer_block():
    groups = [(g.site, g.value, g.bias, g.consumers) for g in find_groups(transformer_block())]
    assert groups == [
        ("norm1", "norm1", None, ("attn.q", "attn.k", "attn.v")),
        ("norm2", "norm2", None, ("mlp.fc1",)),
        ("attn.v", "merge", "attn.v.bias", ("attn.proj",)),
    ]


def test_channels_are_divided_where_made_and_multiplied_where_taken():
    mod = transformer_block()
    factors = {"attn.v": tuple(range(-4, 4))}
    before, after = calls(mod), calls(Balance(factors)(mod))
    assert list(before) == list(after)  # names survive
    m = np.exp2(np.arange(-4, 4)).astype("float32")
    assert_constant(after["attn.v"], 1, constant(before["attn.v"], 1) / m)
    assert_constant(after["attn.v.bias"], 1, constant(before["attn.v.bias"], 1) / m)
    assert_constant(after["attn.proj"], 1, constant(before["attn.proj"], 1) * m[:, None])
    for name in ("norm1", "attn.q", "attn.proj.bias", "mlp.fc1"):
        assert_constant(after[name], 1, constant(before[name], 1))


def test_nothing_decided_changes_nothing():
    mod = transformer_block()
    tvm.ir.assert_structural_equal(Balance({})(mod), mod)


@pytest.mark.parametrize("reader", ["output", "gelu", "reshape that mixes channels", "product of values"])
def test_a_layer_norm_that_others_read_is_no_group(reader):
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    normed = make.layer_norm("norm", x, 0.0)
    linear = make.linear("fc", normed, 8)
    other = {
        "output": lambda: normed,
        "gelu": lambda: make.bind("gelu.0", op.nn.gelu(normed)),
        "reshape that mixes channels": lambda: make.linear(
            "fc2", make.bind("r", op.reshape(normed, (1, 2, 16))), 3
        ),
        "product of values": lambda: make.bind(
            "mm", op.matmul(normed, make.bind("t", op.reshape(x, (1, 8, 4))))
        ),
    }[reader]()
    assert find_groups(make.module([x], relax.Tuple([linear, other]))) == ()


def test_a_reshape_that_keeps_the_channels_is_seen_through():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    rows = make.bind("rows", op.reshape(make.layer_norm("norm", x, 0.0), (4, 8)))
    mod = make.module([x], make.linear("fc", rows, 3))
    assert [(g.site, g.consumers) for g in find_groups(mod)] == [("norm", ("fc",))]


def test_v_that_others_read_is_no_group():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    shared = make.bind("heads", op.reshape(make.linear("kv", x, 8), (1, 4, 2, 4)))
    mixed = make.bind("attn", op.nn.attention(shared, shared, shared))
    mod = make.module([x], make.linear("proj", make.bind("merge", op.reshape(mixed, (1, 4, 8))), 8))
    assert find_groups(mod) == ()


def test_factors_that_do_not_fit_are_refused():
    mod = transformer_block()
    with pytest.raises(ValueError, match="'head' is no group of this module; it has"):
        Balance({"head": (0,)})(mod)
    with pytest.raises(ValueError, match="'norm1' has 8 channels, not 3"):
        Balance({"norm1": (1, 2, 3)})(mod)


def calls(mod):
    return {b.var.name: b.value for block in mod["main"].body.blocks for b in block.bindings}


def constant(call, index):
    return call.args[index].value.numpy()


def assert_constant(call, index, expected):
    np.testing.assert_array_equal(constant(call, index), expected)


def test_powers_of_two_move_from_the_layer_norm_into_the_linear():
    GAMMA, BETA, W = const(4), const(4, seed=1), const(4, 3, seed=2)
    m = np.float32([2.0, 0.5, 1.0, 8.0])
    GAMMA_M, BETA_M = (relax.const(c.value.numpy() / m) for c in (GAMMA, BETA))
    W_M = relax.const(W.value.numpy() * m[:, None])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                norm = R.nn.layer_norm(x, GAMMA, BETA, axes=[-1])
                fc = R.matmul(norm, W)
                R.output(fc)
            return fc

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                norm = R.nn.layer_norm(x, GAMMA_M, BETA_M, axes=[-1])
                fc = R.matmul(norm, W_M)
                R.output(fc)
            return fc

    after = Balance({"norm": (1, -1, 0, 3)})(Before)
    tvm.ir.assert_structural_equal(after, Expected, map_free_vars=True)
    assert_same_function(Before, after, tolerance=0.0)
