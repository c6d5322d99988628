import numpy as np
from tvm import relax

from tests.passes.golden import const
from tvmq.passes.affine import affine_of
from tvmq.passes.rebuild import op_name, rebuild


def found(emit_map, *, bias, readers=1):
    """Return what affine_of says of a map with bias, read by as many."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 4, 4), "float32"))
    answers = []

    def look(graph, var, value):
        if op_name(value) == "nn.relu":
            answers.append(affine_of(graph, value.args[0]))

    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(builder.emit(emit_map(x)), bias))
            out = builder.emit_output(
                relax.Tuple([builder.emit(relax.op.nn.relu(y)) for _ in range(readers)])
            )
        builder.emit_func_output(out)
    rebuild(builder.get(), look)
    return answers[0]


def test_linear_and_convolutions_with_their_bias():
    linear = found(lambda x: relax.op.matmul(x, const(4, 5)), bias=const(5))
    assert (linear.channels, linear.channel_axis, linear.bias.shape) == (5, 3, (5,))
    conv = found(lambda x: relax.op.nn.conv2d(x, const(6, 3, 2, 2)), bias=const(1, 6, 1, 1))
    assert (conv.channels, conv.channel_axis, conv.bias.shape) == (6, 1, (6,))
    deconv = found(lambda x: relax.op.nn.conv2d_transpose(x, const(3, 7, 2, 2)), bias=const(7, 1, 1))
    assert (deconv.channels, deconv.bias.shape) == (7, (7,))
    np.testing.assert_array_equal(deconv.weight, const(3, 7, 2, 2).value.numpy())


def test_a_map_with_two_readers_and_a_sum_that_is_no_bias_are_none():
    assert found(lambda x: relax.op.matmul(x, const(4, 5)), bias=const(5), readers=2) is None
    assert found(lambda x: relax.op.matmul(x, const(4, 5)), bias=const(1, 3, 4, 5)) is None
