"""Small qdq modules, written by hand: every storage is chosen here, none by calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tests.strategies import ModuleBuilder
from tvmq import numerics
from tvmq.formats import QuantParams
from tvmq.passes.composites import attributes

Var = Any
TRUNK = QuantParams(2.0**-9, 0, "int16")
NORMED = QuantParams(2.0**-5, 128, "uint8")
HIDDEN = QuantParams(2.0**-4, 100, "uint8")
ACTIVATED = QuantParams(2.0**-5, 6, "uint8")


class QdqBuilder(ModuleBuilder):
    """Build qdq modules."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(np.random.default_rng(seed))

    def stored(self, name: str, value: Var, params: QuantParams) -> Var:
        """Quantize and dequantize value."""
        scale, zero = relax.const(params.scale, "float32"), relax.const(params.zero_point, params.dtype)
        quantized = self.bind(f"{name}.q", op.quantize(value, scale, zero, axis=-1, out_dtype=params.dtype))
        if params.codes is not None:
            nearest = relax.const(numerics.nearest_codes(params.codes))
            quantized = self.bind(f"{name}.code", op.take(nearest, quantized))
        return self.bind(f"{name}.dq", op.dequantize(quantized, scale, zero, axis=-1))

    def weight(self, shape: tuple[int, ...], axis: int, exponent: int = -7) -> Var:
        """Dequantize random int8 values by scales 2**exponent or half that, one per index of axis."""
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = 2.0 ** (exponent - self.rng.integers(0, 2, shape[axis]))
        return self.bind(
            "weight",
            op.dequantize(
                relax.const(values),
                relax.const(scale.astype(np.float32)),
                relax.const(np.zeros(shape[axis], np.int8)),
                axis=axis,
            ),
        )

    def product(self, site: str, x: Var, outputs: int, exponent: int = -7) -> Var:
        """Multiply by a weight and add a bias."""
        inputs = int(x.ty.shape[-1])
        y = self.bind(site, op.matmul(x, self.weight((inputs, outputs), 1, exponent)))
        return self.bind(f"{site}.bias", op.add(y, self.constant(outputs)))


def float_input(*shape: int) -> Var:
    """Return a parameter x."""
    return relax.Var("x", relax.TensorType(shape, "float32"))


def mlp() -> tvm.IRModule:
    """Norm, product, gelu, product, and the trunk added: [1, 5, 8]."""
    make, x = QdqBuilder(1), float_input(1, 5, 8)
    trunk = make.stored("x", x, TRUNK)
    normed = make.stored("norm", make.layer_norm("norm", trunk, 0.3), NORMED)
    hidden = make.stored("fc1", make.product("fc1", normed, 12, -9), HIDDEN)
    active = make.stored("gelu.0", make.bind("gelu.0", op.nn.gelu(hidden)), ACTIVATED)
    total = make.bind("add.0", op.add(make.product("fc2", active, 8, -8), trunk))
    return make.module([x], make.stored("add.0", total, TRUNK))


def attention() -> tvm.IRModule:
    """Two heads of 4 over 6 tokens: three products, attention, and its heads joined."""
    make, x = QdqBuilder(2), float_input(1, 6, 8)
    scale = 0.5
    # A power of two times 1 / (scale * log2(e) * 14): the logits' unit.
    unit = QuantParams(float(np.float32(2.0**-7 / (scale * np.log2(np.e) * 14) ** 0.5)), 0, "int8")
    plain = QuantParams(2.0**-5, 0, "int8")
    inner = make.stored("x", x, NORMED)
    split = [
        make.bind(
            f"{site}.split",
            op.reshape(make.stored(site, make.product(site, inner, 8, -9), params), (1, 6, 2, 4)),
        )
        for site, params in (("q", unit), ("k", unit), ("v", plain))
    ]
    mixed = make.stored("attn", make.bind("attn", op.nn.attention(*split, scale=scale)), NORMED)
    return make.module([x], op.reshape(mixed, (1, 6, 8)))


def convolutions() -> tvm.IRModule:
    """conv2d with relu, then conv2d_transpose back to the input's size: [1, 3, 6, 6]."""
    make, x = QdqBuilder(3), float_input(1, 3, 6, 6)
    image = make.stored("x", x, NORMED)
    conv = make.bind("conv", op.nn.conv2d(image, make.weight((5, 3, 3, 3), 0, -9), (2, 2), (1, 1)))
    biased = make.bind("conv.bias", op.add(conv, make.constant(1, 5, 1, 1)))
    down = make.stored("conv", make.bind("relu.0", op.nn.relu(biased)), HIDDEN)
    up = make.bind("up", op.nn.conv2d_transpose(down, make.weight((5, 3, 4, 4), 1, -9), (2, 2), (1, 1)))
    total = make.bind("up.bias", op.add(up, make.constant(1, 3, 1, 1)))
    return make.module([x], make.stored("up", total, HIDDEN))


def random_input(mod: tvm.IRModule, seed: int = 0) -> torch.Tensor:
    """Return normal numbers shaped as main's first parameter."""
    shape = [int(d) for d in mod["main"].params[0].ty.shape]
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def kernels(mod: tvm.IRModule) -> list[tuple[str, str]]:
    """Return (kernel, site) of every composite that main calls, in order."""
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    called = [c.op for c in calls if isinstance(c, relax.Call) and isinstance(c.op, tvm.ir.GlobalVar)]
    described = [attributes(mod[gvar]) for gvar in called]
    return [(str(d["kernel"]), str(d["site"])) for d in described]
