import numpy as np
from tvm import relax
from tvm.relax import op

from tests.passes.golden import assert_becomes, assert_untouched, const
from tvmq.passes.take_rows_into_norm import TakeRowsIntoNorm

SIZE, WIDTH = 4, 3
# The four neighbours of each pixel of the smaller image, down before across, as Swin joins them.
NEIGHBOURS = np.arange(16).reshape(2, 2, 2, 2).transpose(0, 2, 3, 1).astype(np.int32)


def module(make):
    """Return a layer norm over what make makes of x [1, 4, 4, 3]."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            moved = make(x, builder.emit)
            c = int(moved.ty.shape[-1])
            out = builder.emit_output(op.nn.layer_norm(moved, const(c), const(c, seed=1), axes=[-1]))
        builder.emit_func_output(out)
    return builder.get()


def merged(x, emit):
    cut = emit(op.reshape(x, (1, 2, 2, 2, 2, WIDTH)))
    return emit(op.reshape(emit(op.permute_dims(cut, [0, 1, 3, 4, 2, 5])), (1, 2, 2, 4 * WIDTH)))


def by_slices(x, emit):
    """The same neighbours, each cut out with strides and joined along the channels."""
    at = ((0, 0), (1, 0), (0, 1), (1, 1))
    cuts = [
        emit(op.strided_slice(x, axes=[1, 2], begin=[dy, dx], end=[SIZE, SIZE], strides=[2, 2]))
        for dy, dx in at
    ]
    return emit(op.concat(cuts, axis=3))


def taken(x, emit):
    rows = emit(op.reshape(x, (SIZE * SIZE, WIDTH)))
    gathered = emit(op.take(rows, relax.const(NEIGHBOURS.reshape(1, 2, 2, 4)), axis=0, mode="clip"))
    return emit(op.reshape(gathered, (1, 2, 2, 4 * WIDTH)))


def test_merged_patches_are_taken_through_one_index():
    assert_becomes(module(merged), TakeRowsIntoNorm(), module(taken))
    assert_becomes(module(by_slices), TakeRowsIntoNorm(), module(taken))


def test_other_moves_before_a_norm_are_left_alone():
    def channels(x, emit):
        return emit(op.permute_dims(x, [0, 1, 3, 2]))

    def first_row(x, emit):
        return emit(op.strided_slice(x, axes=[1], begin=[0], end=[1]))

    for make in (channels, first_row, lambda x, emit: emit(op.reshape(x, (SIZE, SIZE, WIDTH)))):
        assert_untouched(module(make), TakeRowsIntoNorm())
