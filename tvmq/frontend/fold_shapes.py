"""Replace the shape of a tensor, taken as a tensor, by a constant.

Before:  lv17 = R.shape_of(lv16); lv18 = R.shape_to_tensor(lv17)
After:   lv18 = R.const([3, 16, 2, 8], "int64")

ONNX computes shapes in the graph. Every shape is fixed here, so what follows from them can be folded later.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def fold_shapes(mod: tvm.IRModule) -> tvm.IRModule:
    """Return mod without shape_to_tensor of a fixed shape and without unused bindings."""
    main = relax.analysis.remove_all_unused(_FoldShapes().visit_expr(mod["main"]))
    return tvm.IRModule({"main": main})


@mutator
class _FoldShapes(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.shape_to_tensor":
            return call
        shape = call.args[0].ty.values
        if shape is None or not all(isinstance(size, tvm.tirx.IntImm) for size in shape):
            return call
        return relax.const(np.array([int(size) for size in shape]), "int64")
