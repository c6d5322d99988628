"""Axes become one where all that is read and written lies as they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op
from tvm.s_tir import SBlock, Schedule

from tvmq.schedule.contiguous_axes import FLAT, Flat, contiguous_loops
from tvmq.schedule.elementwise import schedule_leftovers

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
NCHW = (2, 24, 14, 14)


def legal(build: Callable[..., Any], *shapes: tuple[int, ...]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        builder.emit_func_output(builder.emit(build(*inputs)))
    return relax.transform.LegalizeOps()(builder.get())


def along(build: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    (func,) = (f for f in legal(build, *shapes).functions.values() if isinstance(f, tvm.tirx.PrimFunc))
    schedule = Schedule(tvm.IRModule({"main": func}))
    (block,) = schedule.get_child_blocks(schedule.get_sblock("root"))
    block = schedule.get(block)
    spatial = [axis for axis in block.iter_vars if axis.iter_type == axis.DataPar]
    return contiguous_loops(block, len(spatial), schedule.mod["main"].params)


@pytest.mark.parametrize(
    ("build", "shapes", "wanted"),
    [
        (op.nn.relu, [NCHW], 4),
        (op.add, [NCHW, NCHW], 4),
        (op.add, [NCHW, (24, 1, 1)], 2),  # rows and columns see the same number
        (op.add, [NCHW, (14,)], 1),
        (op.add, [NCHW, (1, 1, 14, 14)], 2),
        (op.multiply, [NCHW, (2, 1, 1, 1)], 3),
        (lambda x: op.permute_dims(x, [0, 2, 3, 1]), [NCHW], 1),
        (lambda x: op.permute_dims(x, [1, 0, 2, 3]), [NCHW], 2),
        (op.nn.relu, [(8, 3, 32)], 1),  # its rows fill vectors
        (op.nn.relu, [(1, 1, 14)], 1),  # there is but one row
        (lambda x: op.sum(x, axis=[0]), [NCHW], 1),  # sums keep their loops
    ],
)
def test_only_what_lies_together_becomes_one(build, shapes, wanted):
    assert along(build, *shapes) == wanted


def test_a_table_is_read_where_its_indices_say():
    ids = np.random.default_rng(0).integers(0, 9, NCHW).astype("int64")
    table = np.arange(9, dtype=np.float32) ** 2
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var("t", relax.TensorType((9,), "float32")),
        relax.Var("i", relax.TensorType(NCHW, "int64")),
    ]
    with builder.function("main", inputs):
        builder.emit_func_output(builder.emit(op.take(*inputs, axis=0, mode="clip")))
    mod = schedule_leftovers(relax.transform.LegalizeOps()(builder.get()), TARGET)
    machine = relax.VirtualMachine(tvm.compile(mod, target=TARGET), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(table), tvm.runtime.tensor(ids)).numpy()
    np.testing.assert_array_equal(found, table[ids])


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 15), st.sampled_from(["relu", "bias"])
)
def test_every_element_is_computed_once_by_any_shape(shape: list[int], channels: int, kind: str):
    other = tuple(size if channels >> axis & 1 else 1 for axis, size in enumerate(shape))
    build = op.nn.relu if kind == "relu" else op.add
    shapes = [tuple(shape)] + [other] * (kind == "bias")
    random = np.random.default_rng(0)
    arguments = [random.standard_normal(each, "float32") for each in shapes]
    mod = schedule_leftovers(legal(build, *shapes), TARGET)
    machine = relax.VirtualMachine(tvm.compile(mod, target=TARGET), tvm.cpu())
    found = machine["main"](*map(tvm.runtime.tensor, arguments)).numpy()
    wanted = np.maximum(arguments[0], 0) if kind == "relu" else arguments[0] + arguments[1]
    np.testing.assert_array_equal(found, wanted)


def test_the_last_index_counts_on_through_the_rows():
    func = next(
        f for f in schedule_leftovers(legal(op.add, NCHW, (24, 1, 1)), TARGET).functions.values()
        if isinstance(f, tvm.tirx.PrimFunc)
    )  # fmt: skip
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, lambda node: found.append(node))
    block = next(node for node in found if isinstance(node, SBlock) and FLAT in node.annotations)
    flat = Flat.of(block)
    assert flat is not None
    assert flat.lanes == math.gcd(14 * 14, 16)
    image, bias = block.body.value.a, block.body.value.b
    assert [str(index) for index in image.indices[2:]] == ["T.int64(0)", "v2 * T.int64(4) + v3"]
    assert all("v2" not in str(index) and "v3" not in str(index) for index in bias.indices)
