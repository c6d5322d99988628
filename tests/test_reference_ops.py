"""The torch form of a Relax operator is TVM's own: a sample of every family, compiled beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tvmq import reference
from tvmq.reference_ops import OPERATORS

F32, S32, U8 = "float32", "int32", "uint8"
# name -> (shapes and dtypes of the arguments, the call)
CALLS = {
    "divide of integers": ([((64,), S32), ((64,), S32)], lambda a, b: op.divide(a, b)),
    "floor_divide": ([((64,), S32), ((64,), S32)], lambda a, b: op.floor_divide(a, b)),
    "floor_mod": ([((64,), S32), ((64,), S32)], lambda a, b: op.floor_mod(a, b)),
    "right_shift": ([((64,), S32)], lambda a: op.right_shift(a, relax.const(3, S32))),
    "left_shift": ([((64,), S32)], lambda a: op.left_shift(a, relax.const(3, S32))),
    "clip": ([((64,), S32)], lambda a: op.clip(a, -5, 9)),
    "astype": ([((64,), F32)], lambda a: op.astype(a, "int32")),
    "round": ([((64,), F32)], op.round),
    "erf": ([((64,), F32)], op.erf),
    "gelu_tanh": ([((64,), F32)], op.nn.gelu_tanh),
    "silu": ([((64,), F32)], op.nn.silu),
    "leaky_relu": ([((64,), F32)], lambda a: op.nn.leakyrelu(a, 0.3)),
    "log_softmax": ([((3, 8), F32)], lambda a: op.nn.log_softmax(a, axis=-2)),
    "argmax": ([((3, 64), F32)], lambda a: op.argmax(a, axis=-1)),  # holds ties
    "argmin of all": ([((3, 64), F32)], lambda a: op.argmin(a, keepdims=True)),
    "flip": ([((3, 8), F32)], lambda a: op.flip(a, axis=1)),
    "instance_norm": (
        [((3, 4, 5), F32), ((4,), F32), ((4,), F32)],
        lambda x, g, b: op.nn.instance_norm(x, g, b, channel_axis=1, axes=[2], epsilon=1e-3),
    ),
    "instance_norm over samples": (
        [((2, 4, 5), F32), ((4,), F32), ((4,), F32)],
        lambda x, g, b: op.nn.instance_norm(x, g, b, channel_axis=1, axes=[0, 2], epsilon=1e-3),
    ),
    "cumsum": ([((3, 8), F32)], lambda a: op.cumsum(a, axis=1)),
    "sum": ([((3, 4, 5), F32)], lambda a: op.sum(a, axis=[0, 2])),
    "variance": ([((3, 4, 5), F32)], lambda a: op.variance(a, axis=-1, keepdims=True)),
    "mean of all": ([((3, 4), F32)], op.mean),
    "matmul": ([((2, 3, 4), F32), ((4, 5), F32)], op.matmul),
    "layer_norm": (
        [((3, 8), F32), ((8,), F32), ((8,), F32)],
        lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1], epsilon=1e-3),
    ),
    "softmax": ([((3, 8), F32)], lambda a: op.nn.softmax(a, axis=0)),
    "attention": ([((1, 4, 2, 8), F32)] * 3, lambda q, k, v: op.nn.attention(q, k, v, scale=0.3)),
    "conv1d": (
        [((2, 4, 9), F32), ((6, 2, 3), F32)],
        lambda x, w: op.nn.conv1d(x, w, 2, (1, 2), 2, groups=2),
    ),
    "conv2d": (
        [((1, 4, 6, 7), F32), ((6, 2, 3, 2), F32)],
        lambda x, w: op.nn.conv2d(x, w, (2, 1), (1, 0, 2, 1), groups=2),
    ),
    "conv2d of dilated taps": (
        [((1, 2, 7, 7), F32), ((3, 2, 2, 2), F32)],
        lambda x, w: op.nn.conv2d(x, w, dilation=(2, 3)),
    ),
    "conv2d_transpose": (
        [((1, 3, 4, 4), F32), ((3, 2, 3, 3), F32)],
        lambda x, w: op.nn.conv2d_transpose(x, w, 2, 1, 1),
    ),
    "max_pool2d": ([((1, 2, 6, 6), F32)], lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1))),
    "avg_pool2d": (
        [((1, 2, 6, 6), F32)],
        lambda x: op.nn.avg_pool2d(x, (2, 2), (2, 2), (1, 1), count_include_pad=True),
    ),
    "adaptive_avg_pool2d": ([((1, 2, 5, 7), F32)], lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1))),
    "pad": ([((2, 3), F32)], lambda x: op.nn.pad(x, [1, 0, 0, 2], "constant", 0.5)),
    "pad of integers": (
        [((1, 3, 4, 2), U8)],
        lambda x: op.nn.pad(x, [0, 0, 1, 2, 0, 1, 0, 0], "constant", 7),
    ),
    "take": ([((5, 4), F32)], lambda x: op.take(x, relax.const([[3, 1], [0, 0]], "int64"), axis=0)),
    "strided_slice": (
        [((7, 8), F32)],
        lambda x: op.strided_slice(x, axes=[0, 1], begin=[1, -5], end=[6, 8], strides=[2, 1]),
    ),
    "split at points": ([((7, 2), F32)], lambda x: op.split(x, [2, 3], axis=0)),
    "split in sections": ([((6, 2), F32)], lambda x: op.split(x, 3, axis=0)),
    "concat": ([((2, 3), F32), ((2, 1), F32)], lambda a, b: op.concat([a, b], axis=-1)),
    "permute_dims": ([((2, 3, 4), F32)], lambda x: op.permute_dims(x, [2, 0, 1])),
    "dequantize": (
        [((3, 4), "int8")],
        lambda x: op.dequantize(
            x, relax.const(np.float32([0.5, 0.1, 2.0])), relax.const(np.int8([1, 0, -3])), axis=0
        ),
    ),
    "where": ([((8,), "bool"), ((8,), F32), ((8,), F32)], op.where),
    "resize2d": (
        [((1, 2, 4, 5), F32)],
        lambda x: op.image.resize2d(x, (8, 7), layout="NCHW", method="linear"),
    ),
}


def argument(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Return random values; floats hold ties to round, integers no zero to divide by."""
    rng = np.random.default_rng(seed)
    if dtype == F32:
        return (rng.integers(-12, 13, shape) / 2).astype(np.float32)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    values = rng.integers(1, 100, shape)
    return (values * rng.choice([-1, 1], shape) if dtype in (S32, "int8") else values).astype(dtype)


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    """One function for each call."""
    builder = relax.BlockBuilder()
    for index, (kinds, call) in enumerate(CALLS.values()):
        params = [
            relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(kinds)
        ]
        with builder.function(f"f{index}", params):
            with builder.dataflow():
                out = builder.emit_output(call(*params))
            builder.emit_func_output(out)
    return builder.get()


@pytest.fixture(scope="module")
def machine(module) -> relax.VirtualMachine:
    return relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_computes_what_tvm_computes(name, module, machine):
    function = f"f{list(CALLS).index(name)}"
    arrays = [argument(shape, dtype, seed) for seed, (shape, dtype) in enumerate(CALLS[name][0])]
    result = machine[function](*(tvm.runtime.tensor(a) for a in arrays))
    by_tvm = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    found = reference.run(tvm.IRModule({"main": module[function]}), [torch.from_numpy(a) for a in arrays])
    for ours, theirs in zip(found, by_tvm, strict=True):
        assert str(ours.dtype).removeprefix("torch.") == str(theirs.dtype)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_name_is_an_operator_of_relax(name):
    assert tvm.ir.Op.get(f"relax.{name}").name == f"relax.{name}"
