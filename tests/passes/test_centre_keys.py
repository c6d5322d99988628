import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_becomes, const
from tests.strategies import ModuleBuilder, seeds, transformer_block
from tvmq import reference
from tvmq.passes.centre_keys import CentreKeys, find_keys
from tvmq.passes.rebuild import bindings

CHANNELS = 8


def test_the_keys_of_a_transformer_block():
    assert [(k.site, k.source, k.bias) for k in find_keys(transformer_block())] == [
        ("attn.k", "norm1", "attn.k.bias")
    ]


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_any_bias_of_the_keys_gives_the_same_function(seed: int):
    mod = transformer_block(seed)
    bias = np.random.default_rng(seed).normal(0, 2, CHANNELS).astype(np.float32)
    x = torch.randn(1, 5, CHANNELS, generator=torch.Generator().manual_seed(seed))
    after = CentreKeys({"attn.k.bias": bias})(mod)
    before = reference.run(mod, [x])[0]
    near = 1e-4 * float(before.abs().max())
    torch.testing.assert_close(reference.run(after, [x])[0], before, rtol=0, atol=near)
    (found,) = (b.value.args[1].value.numpy() for b in bindings(after["main"]) if b.var.name == "attn.k.bias")
    np.testing.assert_array_equal(found.ravel(), bias)
    assert [b.var.name for b in bindings(after["main"])] == [b.var.name for b in bindings(mod["main"])]


def test_keys_that_someone_else_reads_keep_their_bias():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    q, k = (
        make.bind(f"reshape.{name}", op.reshape(make.linear(f"attn.{name}", x, 8), (1, 4, 2, 4)))
        for name in "qk"
    )
    mixed = make.bind("attn", op.nn.attention(q, k, k))
    assert find_keys(make.module([x], mixed)) == ()


def test_a_bias_of_no_keys_is_an_error():
    with pytest.raises(ValueError, match=r"'attn.q.bias' adds no bias to keys; \['attn.k.bias'\] do"):
        CentreKeys({"attn.q.bias": np.zeros(CHANNELS, np.float32)})(transformer_block())


def test_only_the_bias_of_the_keys_changes():
    K, B, C = const(8, 8), const(8, seed=1), relax.const(np.arange(8, dtype=np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 2, 4), "float32"), x: R.Tensor((1, 4, 8), "float32")):
            with R.dataflow():
                k = R.matmul(x, K)
                bias = R.add(k, B)
                heads = R.reshape(bias, (1, 4, 2, 4))
                out = R.nn.attention(q, heads, q)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 2, 4), "float32"), x: R.Tensor((1, 4, 8), "float32")):
            with R.dataflow():
                k = R.matmul(x, K)
                bias = R.add(k, C)
                heads = R.reshape(bias, (1, 4, 2, 4))
                out = R.nn.attention(q, heads, q)
                R.output(out)
            return out

    assert_becomes(Before, CentreKeys({"bias": C.value.numpy()}), Expected)
