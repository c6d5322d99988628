"""What the pass tests share: constants, and equality of graphs up to variable names."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from tvm import relax

from tvmq import reference


def const(*shape: int, seed: int = 0, scale: float = 1.0):
    """Return a float32 constant of normal numbers."""
    return relax.const(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def assert_becomes(before: tvm.IRModule, tvm_pass, expected: tvm.IRModule, rtol: float = 0.0) -> None:
    """The pass turns before into expected (constants within rtol), keeps it so, and keeps the function."""
    after = tvm_pass(before)
    if rtol:
        assert _without_constants(after) == _without_constants(expected)
    else:
        tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)
    tvm.ir.assert_structural_equal(tvm_pass(after), after, map_free_vars=True)
    assert_same_function(before, after)
    assert_same_function(expected, after)


def assert_untouched(mod: tvm.IRModule, tvm_pass) -> None:
    """The pass leaves mod as it is."""
    tvm.ir.assert_structural_equal(tvm_pass(mod), mod, map_free_vars=True)


def assert_same_function(a: tvm.IRModule, b: tvm.IRModule, tolerance: float = 1e-5) -> None:
    """Both modules give the same outputs, within tolerance of the largest."""
    generator = torch.Generator().manual_seed(0)
    inputs = [_input(p, generator) for p in a["main"].params]
    for x, y in zip(reference.run(a, inputs), reference.run(b, inputs), strict=True):
        assert x.shape == y.shape
        assert float((x - y).abs().max()) <= tolerance * float(x.abs().max())


def _input(param, generator: torch.Generator) -> torch.Tensor:
    shape = [int(d) for d in param.ty.shape]
    if str(param.ty.dtype) == "bool":
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    return torch.randn(shape, generator=generator)


def _without_constants(mod: tvm.IRModule) -> list[tuple[str, str, str]]:
    return [
        (str(b.value.op), str(b.value.ty), str(b.value.attrs)) for b in mod["main"].body.blocks[0].bindings
    ]
