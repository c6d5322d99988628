"""Kernels between the first and the last one are recorded together; main itself stays as it is."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax import op

from tests.schedule.cuda.emulator import cuda_target
from tvmq.build import lowering_passes
from tvmq.gpu import GRAPH

ROWS, WIDTH = 4, 8


def lowered(*, graph: bool) -> tvm.IRModule:
    """Return four kernels in a row, which a last parameter gives constants to, ready for the VM."""
    kind = relax.TensorType((ROWS, WIDTH), "float32")
    x, params = relax.Var("x", kind), relax.Var("params", relax.TupleType([kind, kind]))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, params]):
        with builder.dataflow():
            first, second = (builder.emit(relax.TupleGetItem(params, i)) for i in range(2))
            y = builder.emit(op.add(x, first))
            for _ in range(2):
                y = builder.emit(op.sum(y, axis=0, keepdims=True))  # a reduction does not join the next one
                y = builder.emit(op.multiply(second, y))
            out = builder.emit_output(op.sum(y, axis=1))
        builder.emit_func_output(out)
    with cuda_target((8, 0)) as target:
        return tvm.transform.Sequential(lowering_passes(target, graph=graph))(builder.get())


def test_all_but_the_first_and_the_last_kernel_are_recorded():
    plain, recorded = lowered(graph=False), lowered(graph=True)
    names = {gvar.name_hint for gvar, f in recorded.functions.items() if isinstance(f, relax.Function)}
    assert {"main", GRAPH, "cuda_graph_alloc"} < names
    text = recorded[GRAPH].script()
    assert text.count("vm.builtin.cuda_graph.run_or_capture") == 1
    tvm.ir.assert_structural_equal(recorded["main"], plain["main"], map_free_vars=True)
    assert "cuda_graph" not in plain.script()
