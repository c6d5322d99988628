import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmq.schedule import vectors

COUNT = 16


def run(body, *arrays: np.ndarray, out: tuple[int, str]) -> np.ndarray:
    """Build and call a function whose body gets one buffer per array, and the output's buffer."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            buffers = [T.arg(f"a{i}", T.buffer(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
            body(*buffers, T.arg("out", T.buffer((out[0],), out[1])))
        func = builder.get().with_attr("global_symbol", "main")
    given = [tvm.runtime.tensor(a) for a in arrays]
    result = tvm.runtime.tensor(np.zeros(*out))
    tvm.compile(func, tvm.target.Target("llvm"))(*given, result)
    return result.numpy()


INTS = np.random.default_rng(0).integers(-1000, 1000, (2, COUNT)).astype(np.int32)


@pytest.mark.parametrize("count", [1, 4, 16])
def test_load_and_store_move_contiguous_lanes(count: int):
    def body(a, out):
        value = vectors.load(a, (1, 0), count)
        assert vectors.lanes(value) == count
        vectors.store(out, 0, value + vectors.splat(3, vectors.vector_type("int32", count)))

    expected = np.where(np.arange(COUNT) < count, INTS[1] + 3, 0)
    np.testing.assert_array_equal(run(body, INTS, out=(COUNT, "int32")), expected)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize(("operation", "reduce"), [("add", np.sum), ("smax", np.max)])
def test_lanes_are_reduced(count: int, operation: str, reduce):
    def body(a, out):
        total = vectors.reduce_lanes(operation, vectors.load(a, (0, 0), count))
        vectors.store(out, 0, vectors.repeat(total, COUNT))

    np.testing.assert_array_equal(
        run(body, INTS, out=(COUNT, "int32")), np.full(COUNT, reduce(INTS[0, :count]))
    )


def test_shuffle_and_concat_count_lanes_through_all_vectors():
    def body(a, out):
        low, high = vectors.load(a, (0, 0), 8), vectors.load(a, (1, 8), 8)
        vectors.store(
            out, 0, vectors.shuffle([vectors.concat([low, high], "int32x8")], [*range(8, 16), *range(8)])
        )

    expected = np.concatenate([INTS[1, 8:], INTS[0, :8]])
    np.testing.assert_array_equal(run(body, INTS, out=(COUNT, "int32")), expected)
