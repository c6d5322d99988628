import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq.passes.rebuild import bindings, op_name
from tvmq.schedule.float_conv_dispatch import float_conv_kernel, float_conv_spec, limits_of
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.target import load_profile

PROFILE = load_profile("x86_avx2")


def conv(data: tuple[int, ...], weight: tuple[int, ...], **fields: object) -> relax.Call:
    x = relax.Var("x", relax.TensorType(data, "float32"))
    random = np.random.default_rng(0)
    call = op.nn.conv2d(x, relax.const(random.standard_normal(weight, "float32")), **fields)
    return relax.BlockBuilder().normalize(call)


def test_limits_are_those_of_a_relu_or_a_clip():
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    assert limits_of(op.nn.relu(x)) == (0.0, None)
    assert limits_of(op.clip(x, 0.0, 6.0)) == (0.0, 6.0)
    assert limits_of(op.clip(x, float("-inf"), 6.0)) == (None, 6.0)
    assert limits_of(op.sigmoid(x)) is None


def test_the_specification_is_that_of_the_call():
    call = conv((2, 6, 9, 7), (4, 3, 3, 1), strides=(2, 1), padding=(1, 0, 2, 0), dilation=(1, 1), groups=2)
    spec = float_conv_spec(call, relax.const(np.ones((4, 1, 1), np.float32)), (0.0, None))
    assert spec is not None
    assert (spec.bias, spec.low, spec.high) == (True, 0.0, None)
    g = spec.geometry
    assert (g.batch, g.out_rows, g.out_columns, g.outputs, g.groups) == (2, 5, 7, 4, 2)
    kernel = float_conv_kernel(spec, PROFILE, 1)
    assert kernel is not None
    assert kernel.name == "float_conv2d_5x7x6x4"
    assert kernel.packing[1].layout == "floats16:2"


@pytest.mark.parametrize(
    "bias", [np.ones((1, 1, 7), np.float32), np.ones((4,), np.float32), np.ones((2, 4, 1, 1), np.float32)]
)
def test_what_is_not_one_number_per_output_is_no_bias(bias):
    call = conv((1, 6, 7, 7), (4, 6, 1, 1))
    assert float_conv_spec(call, relax.const(bias), (None, None)) is None


def test_other_layouts_and_types_are_left_alone():
    assert (
        float_conv_spec(
            conv((1, 7, 7, 6), (4, 1, 1, 6), data_layout="NHWC", kernel_layout="OHWI"), None, (None, None)
        )
        is None
    )
    x = relax.Var("x", relax.TensorType((1, 6, 7, 7), "float32"))
    computed = relax.BlockBuilder().normalize(
        op.nn.conv2d(x, relax.Var("w", relax.TensorType((4, 6, 1, 1), "float32")))
    )
    assert float_conv_spec(computed, None, (None, None)) is None


def network() -> tvm.IRModule:
    """Return convolutions of every kind, a pooling and a residual sum between them."""
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((2, 3, 13, 11), "float32"))

    def layer(
        name: str, source: relax.Var, outputs: int, inputs: int, kernel: int, **fields: object
    ) -> relax.Var:
        weight = make.constant(outputs, inputs, kernel, kernel)
        y = make.bind(name, op.nn.conv2d(source, weight, padding=[kernel // 2] * 4, **fields))
        return make.bind(f"{name}.bias", op.add(y, make.constant(1, outputs, 1, 1)))

    stem = make.bind("relu.0", op.nn.relu(layer("stem", x, 24, 3, 3, strides=(2, 2))))
    pooled = make.bind("pool", op.nn.max_pool2d(stem, (3, 3), (1, 1), (1, 1)))
    deep = make.bind("relu6", op.clip(layer("depthwise", pooled, 24, 1, 3, groups=24), 0.0, 6.0))
    mixed = layer("grouped", deep, 24, 8, 3, groups=3)
    out = make.bind("relu.1", op.nn.relu(make.bind("sum", op.add(pooled, mixed))))
    return make.module([x], op.mean(out, axis=[2, 3]))


@pytest.mark.isa("avx2", "fma")
def test_a_network_has_one_permute_and_the_values_it_had():
    mod = network()
    dispatch = DispatchFloats(PROFILE)
    scheduled = dispatch(mod)
    found = [op_name(b.value) for b in bindings(scheduled["main"])]
    assert found.count("permute_dims") == 1  # of the input
    assert not {"nn.conv2d", "clip"} & set(found)
    assert sorted(use.kernel.name for use in dispatch.uses.values()) == [
        "float_conv2d_7x6x24x24", "float_conv2d_7x6x3x24", "float_depthwise_7x6x24x24",
    ]  # fmt: skip
    image = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(0)).numpy()
    results = [
        relax.VirtualMachine(tvm.compile(m, PROFILE.tvm()), tvm.cpu())["main"](
            tvm.runtime.tensor(image)
        ).numpy()
        for m in (scheduled, mod)
    ]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


def test_a_weight_that_another_kernel_has_otherwise_is_left_alone():
    make = ModuleBuilder(np.random.default_rng(0))
    weight = make.constant(8, 4, 1, 1)
    xs = [relax.Var(n, relax.TensorType((1, c, 5, 5), "float32")) for n, c in (("x", 4), ("y", 8))]
    one = make.bind("one", op.nn.conv2d(xs[0], weight))
    two = make.bind("two", op.nn.conv2d(xs[1], weight, groups=2))
    found = DispatchFloats(PROFILE)(make.module(xs, op.add(one, two)))
    assert [op_name(b.value) for b in bindings(found["main"])].count("nn.conv2d") == 1
