import numpy as np
import tvm
from tvm import relax
from tvm.script import tirx as T

from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import KernelTable
from tvmq.schedule.space import Space


def copy_of(lanes: int) -> tvm.tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((32,), "int8"), out: T.Buffer((32,), "int8")):
        for i in T.serial(32 // lanes):
            out[i * lanes] = x[i * lanes]

    return main


COPY = Kernel(("copy", 32), "copy", (None,), copy_of, Space({"lanes": (8, 16)}, {"lanes": 16}))


def lanes_of(decisions) -> str:
    table = KernelTable(builder := relax.BlockBuilder(), decisions)
    gvar = table.call(COPY, [relax.const(np.zeros(32, "int8"))])
    return 32 // int(builder.get()[gvar].body.extent)


def test_a_kernel_is_built_by_what_was_found_for_it():
    assert lanes_of({}) == 16
    assert lanes_of({COPY.semantics: {"lanes": 8}}) == 8
    assert lanes_of({"('copy', 33)": {"lanes": 8}}) == 16
    assert lanes_of({COPY.semantics: {"lanes": 5}}) == 16  # of an older version: not in this space


def test_uses_count_the_calls_and_keep_the_first_constants():
    table = KernelTable(relax.BlockBuilder(), {})
    constant = relax.const(np.arange(32, dtype="int8"))
    variable = relax.Var("x", relax.TensorType((32,), "int8"))
    assert table.call(COPY, [constant, variable]) is table.call(COPY, [variable, variable])
    (use,) = table.uses.values()
    assert use.calls == 2
    np.testing.assert_array_equal(use.arguments[0], np.arange(32))
    assert use.arguments[1] is None


def test_kernels_of_one_name_are_told_apart_without_another_digit_of_a_shape():
    table = KernelTable(builder := relax.BlockBuilder(), {})
    variable = relax.Var("x", relax.TensorType((32,), "int8"))
    for lanes in (8, 16):
        space = Space({"lanes": (lanes,)}, {"lanes": lanes})
        table.call(Kernel((lanes,), "copy_4x32", (None,), copy_of, space), [variable])
    assert {gvar.name_hint for gvar in builder.get().functions} == {"copy_4x32", "copy_4x32_2"}
