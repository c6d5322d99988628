import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq import reference
from tvmq.passes.balance import Balance, Balancing
from tvmq.passes.balance_groups import find_groups

TOKENS, WIDTH = 6, 8


def headed(pool):
    """A layer_norm, what pool makes of its rows and of a mask, and the linear that reads that."""
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((2, TOKENS, WIDTH), "float32"))
    mask = relax.Var("mask", relax.TensorType((2, TOKENS, 1), "float32"))
    pooled = pool(make, make.layer_norm("norm", x, 1.0), mask)
    return make.module([x, mask], make.linear("head", pooled, 3))


def first_token(make, rows, mask):
    return make.bind("pooled", op.take(rows, relax.const(0, "int64"), axis=1))


def mean_of_patches(make, rows, mask):
    patches = make.bind("patches", op.strided_slice(rows, [1], [1], [TOKENS]))
    return make.bind("pooled", op.mean(patches, axis=[1]))


def masked_mean(make, rows, mask):
    total = make.bind("total", op.sum(make.bind("shown", op.multiply(mask, rows)), axis=[1]))
    return make.bind("pooled", op.divide(total, make.bind("count", op.sum(mask, axis=[1]))))


@pytest.mark.parametrize("pool", [first_token, mean_of_patches, masked_mean])
def test_factors_of_channels_pass_through(pool):
    mod, rng = headed(pool), np.random.default_rng(1)
    [group] = find_groups(mod)
    assert (group.site, group.value, group.pooled) == ("norm", "pooled", True)
    assert group.shiftable == (pool is not masked_mean)  # a sum of n rows has a shift n times
    factors = np.exp2(rng.uniform(-4, 4, WIDTH)).astype(np.float32)
    shifts = rng.standard_normal(WIDTH).astype(np.float32) * group.shiftable
    balanced = Balance({"norm": Balancing(factors, shifts)})(mod)
    inputs = (
        torch.randn(2, TOKENS, WIDTH),
        torch.tensor([1.0, 1, 1, 0, 1, 0]).reshape(1, -1, 1).expand(2, -1, 1),
    )
    before, after = (reference.run(each, inputs)[0] for each in (mod, balanced))
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())


def other_pools():
    def over_channels(make, rows, mask):
        return make.bind("pooled", op.mean(rows, axis=[2]))

    def some_channels(make, rows, mask):
        return make.bind("pooled", op.strided_slice(rows, [-1], [0], [4]))

    def by_channel(make, rows, mask):
        return make.bind("pooled", op.multiply(rows, make.constant(WIDTH)))

    def into_a_divisor(make, rows, mask):
        return make.bind("pooled", op.divide(mask, rows))

    def of_all(make, rows, mask):
        return make.bind("pooled", op.nn.softmax(rows, axis=1))

    return [over_channels, some_channels, by_channel, into_a_divisor, of_all]


@pytest.mark.parametrize("pool", other_pools())
def test_what_mixes_or_bends_channels_is_no_group(pool):
    assert find_groups(headed(pool)) == ()
