"""Random integer linear layers, the outputs that numerics gives for them, and their compiled kernels."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from tests.schedule.isa_cases import ISA, target_of
from tvmq import numerics
from tvmq.schedule.linear_spec import LANES, LinearSpec, buffers, pack_weight, pad_channels
from tvmq.schedule.register_tiles import Decision
from tvmq.schedule.x86_linear import default_decision, linear_prim_func, schedule_linear

EPILOGUES: dict[str, dict[str, Any]] = {
    "uint8": {"out_dtype": "uint8"},
    "table": {"out_dtype": "uint8", "table": True},
    "int8": {"out_dtype": "int8", "low": -127},
    "few bits": {"out_dtype": "uint8", "low": 1, "high": 15},
    "trunk": {"out_dtype": "int16", "residual": True},
    "fixed point": {"out_dtype": "uint8", "fixed_point": True, "zero_point": 128},
    "gain": {"out_dtype": "uint8", "gain": True},
    "gain in the trunk": {"out_dtype": "int16", "gain": True, "residual": True},
    "float32": {"out_dtype": "float32"},
}
Pack = Callable[[Any], Any]
SMALL = LinearSpec(rows=5, inputs=8, outputs=20, out_dtype="uint8")


def compiled(spec: LinearSpec, name: str, decision: Decision | None = None, threads: int = 1) -> Any:
    isa = ISA[name]
    decision = decision or default_decision(spec, threads, isa)
    func = schedule_linear(linear_prim_func(spec, isa, ahead=decision.ahead), spec, decision, isa)
    return tvm.compile(tvm.IRModule({"main": func}), target_of(isa))


compiled_once = functools.cache(compiled)


def random_case(
    spec: LinearSpec, seed: int = 0, largest: int = 127, pack: Pack = pack_weight
) -> tuple[list[Any], Any]:
    """Return the kernel's arguments without out, and the output that numerics gives; |weight| <= largest."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (spec.rows, spec.inputs), "uint8")
    weight = random.integers(-largest, largest + 1, (spec.inputs, spec.outputs)).astype("int8")
    bias = random.integers(-5000, 5000, spec.outputs, "int32")
    acc = x.astype("int64") @ weight.astype("int64") + bias
    per_channel, values = [bias], acc
    if spec.out_dtype == "float32":
        per_channel.append(random.random(spec.outputs, "float32"))
        return _arguments(spec, x, pack(weight), per_channel), acc.astype("float32") * per_channel[-1]
    if spec.fixed_point:
        per_channel.append(random.integers(2**30, 2**31, spec.outputs).astype("int32"))
        per_channel.append(random.integers(34, 46, spec.outputs, "int32"))
        values = numerics.round_shift_wide(acc * per_channel[1].astype("int64"), per_channel[2])
        values = values + spec.zero_point
    elif spec.gain:
        per_channel.append(random.integers(1, numerics.MOST_GAIN + 1, spec.outputs).astype("int8"))
        per_channel.append(random.integers(0, 18, spec.outputs, "int8"))
        values = (acc - bias) * per_channel[1].astype("int64") + bias >> per_channel[2]
    else:
        per_channel.append(random.integers(0, 14, spec.outputs, "int32"))
        values = acc >> per_channel[1]
    arguments = _arguments(spec, x, pack(weight), per_channel)
    if spec.residual:
        arguments.append(random.integers(-32768, 32768, (spec.rows, spec.outputs)).astype("int16"))
        values = values + arguments[-1]
    values = np.clip(values, *spec.clip).astype(spec.out_dtype)
    if spec.table:
        arguments.append(random.permutation(256).astype("uint8"))
        values = arguments[-1][values]
    return arguments, values


def _arguments(spec: LinearSpec, x: Any, weight: Any, per_channel: list[Any]) -> list[Any]:
    padded = spec.groups * LANES
    return [x, weight, *(pad_channels(values, padded) for values in per_channel)]


def check(kernel: Any, spec: LinearSpec) -> None:
    arguments, expected = random_case(spec)
    assert [(a.shape, a.dtype) for a in arguments] == list(buffers(spec).values())[:-1]
    out = tvm.runtime.tensor(np.full(expected.shape, 77, spec.out_dtype))
    kernel(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), expected)


def guarded(array: Any) -> Any:
    """Return a copy that ends where the readable memory ends; its size is a multiple of 64 bytes."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert array.nbytes % 64 == 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, offset=size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy
