import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tests.passes.golden import assert_becomes, assert_untouched, const
from tests.passes.windows import SIZE, WIDTH, image, taken, windowed, windows
from tests.strategies import transformer_block
from tvmq.passes.move_rows_to_attention import MoveRowsToAttention
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.remove_no_ops import RemoveNoOps

MOVED = tvm.transform.Sequential([MoveRowsToAttention(), RemoveNoOps()])


@pytest.mark.parametrize(("shift", "how"), [(0, "take"), (1, "take"), (1, "slices"), (3, "slices")])
def test_windows_become_one_take_before_and_one_behind_attention(shift, how):
    assert_becomes(windowed(shift, how), MOVED, MOVED(taken(shift)))
    ops = [op_name(b.value) for b in bindings(MOVED(windowed(shift, how))["main"])]
    assert ops.count("take") == 4
    assert not {"permute_dims", "concat", "strided_slice"} & set(ops)


def test_attention_over_rows_in_their_order_is_left_alone():
    assert_untouched(transformer_block(), MoveRowsToAttention())


def linears(before, behind) -> tvm.IRModule:
    """Return two linears around a relu, before and behind moving rows."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.matmul(before(builder.emit, x), const(WIDTH, WIDTH)))
            y = builder.emit(op.matmul(builder.emit(op.nn.relu(y)), const(WIDTH, WIDTH, seed=1)))
            out = builder.emit_output(behind(builder.emit, y))
        builder.emit_func_output(out)
    return builder.get()


def test_moves_without_attention_are_left_alone():
    assert_untouched(linears(windows, image), MoveRowsToAttention())


def test_keys_of_other_rows_than_the_queries_are_left_alone():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    emit = builder.emit
    with builder.function("main", [x]):
        with builder.dataflow():
            moved = windows(emit, x)
            sources = [moved, emit(op.permute_dims(moved, [1, 0, 2])), moved]
            q, k, v = (
                emit(op.reshape(emit(op.matmul(s, const(WIDTH, WIDTH, seed=i))), (4, 4, 2, 4)))
                for i, s in enumerate(sources)
            )
            out = builder.emit_output(op.nn.attention(q, k, v))
        builder.emit_func_output(out)
    assert_untouched(builder.get(), MoveRowsToAttention())


def test_rows_that_are_dropped_or_repeated_stay_where_they_are():
    def repeated(emit, x):
        first = emit(op.strided_slice(x, axes=[1], begin=[0], end=[2]))
        return windows(emit, emit(op.concat([first, first], axis=1)))

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIZE, SIZE, WIDTH), "float32"))
    emit = builder.emit
    with builder.function("main", [x]):
        with builder.dataflow():
            moved = repeated(emit, x)
            split = [
                emit(op.reshape(emit(op.matmul(moved, const(WIDTH, WIDTH, seed=i))), (4, 4, 2, 4)))
                for i in range(3)
            ]
            out = builder.emit_output(op.nn.attention(*split))
        builder.emit_func_output(out)
    assert_untouched(builder.get(), MoveRowsToAttention())
