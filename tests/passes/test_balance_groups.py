import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder, transformer_block
from tvmq.passes.balance_groups import find_groups


def test_groups_of_a_transformer_block():
    groups = [
        (g.site, g.value, g.bias, tuple(c.site for c in g.consumers), g.shiftable)
        for g in find_groups(transformer_block())
    ]
    assert groups == [
        ("norm1", "norm1", None, ("attn.q", "attn.k", "attn.v"), True),
        ("norm2", "norm2", None, ("mlp.fc1",), True),
        ("attn.v", "merge", "attn.v.bias", ("attn.proj",), True),
    ]


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
    assert [(g.site, g.consumers[0].site) for g in find_groups(mod)] == [("norm", "fc")]


def test_v_that_others_read_is_no_group():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    shared = make.bind("heads", op.reshape(make.linear("kv", x, 8), (1, 4, 2, 4)))
    mixed = make.bind("attn", op.nn.attention(shared, shared, shared))
    mod = make.module([x], make.linear("proj", make.bind("merge", op.reshape(mixed, (1, 4, 8))), 8))
    assert find_groups(mod) == ()


def conv_chain(activation=op.nn.relu, pool=False, groups=1):
    """conv, activation, depthwise, activation, conv: the triple of a mobile net."""
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))

    def conv(name, value, weight, groups=1):
        made = make.bind(name, op.nn.conv2d(value, make.constant(*weight), padding=1, groups=groups))
        bias = relax.const(make.rng.standard_normal((1, weight[0], 1, 1)).astype(np.float32))
        return make.bind(f"{name}.bias", op.add(made, bias))

    y = make.bind("act1", activation(conv("expand", x, (8, 3, 3, 3))))
    if pool:
        y = make.bind("pool", op.nn.max_pool2d(y, (2, 2)))
    y = make.bind("act2", activation(conv("middle", y, (8, 8 // groups, 3, 3), groups)))
    return make.module([x], conv("project", y, (4, 8, 1, 1)))


@pytest.mark.parametrize("activation", [lambda x: op.clip(x, 0, 6), op.nn.gelu])
def test_what_is_not_homogeneous_is_no_group(activation):
    assert find_groups(conv_chain(activation)) == ()
