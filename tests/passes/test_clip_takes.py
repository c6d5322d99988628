import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_untouched
from tvmq.passes.clip_takes import ClipTakes


def module(mode: str) -> tvm.IRModule:
    @I.ir_module
    class Module:
        @R.function
        def main(table: R.Tensor((4, 2), "float32"), ids: R.Tensor((3,), "int64")) -> R.Tensor(
            (3, 2), "float32"
        ):
            with R.dataflow():
                lv = R.take(table, ids, axis=0, mode=mode)
                R.output(lv)
            return lv

    return Module


def test_takes_that_trust_their_indices_are_bounded():
    after = ClipTakes()(module("fast"))
    tvm.ir.assert_structural_equal(after, module("clip"), map_free_vars=True)
    assert_untouched(after, ClipTakes())


def test_an_index_outside_the_table_reads_its_edge():
    from tvm import relax

    executable = tvm.compile(ClipTakes()(module("fast")), tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = machine["main"](tvm.runtime.tensor(table), tvm.runtime.tensor(np.array([0, 9, 10**9])))
    np.testing.assert_array_equal(found.numpy(), table[[0, 3, 3]])
