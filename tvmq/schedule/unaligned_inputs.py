"""Kernels that read what a caller passes in wherever it lies.

Generated code is told that every tensor starts at a multiple of 64 bytes. NumPy's arrays rarely do, and
to copy each input costs more than unaligned loads: 40 us of the 2 ms that a MobileNetV2 takes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from tvmq.passes.rebuild import bindings, op_name

VIEW = "reshape"
CALL = "call_tir"


@tvm.ir.transform.module_pass(opt_level=0, name="UnalignedInputs")
class UnalignedInputs:
    """Promise kernels no more of a model's inputs than that elements are aligned.

    What is not a tensor, as the tuple of constants, is left alone. Runs when reshapes that are views are
    known as such, and every other call is of a PrimFunc.
    """

    def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """See the class."""
        result = mod.clone()
        for kernel, numbers in _readers(mod).items():
            func = result[kernel]
            for number in numbers:
                func = _unaligned(func, func.params[number])
            result.update_func(kernel, func)
        return result


def _readers(mod: tvm.IRModule) -> dict[Any, set[int]]:
    """Return, by kernel, the numbers of the parameters that may be inputs of a public function."""
    found: dict[Any, set[int]] = defaultdict(set)
    for func in mod.functions.values():
        if not isinstance(func, relax.Function):
            continue
        inputs = {p for p in func.params if isinstance(p.ty, relax.TensorType)}
        for binding in bindings(func):
            call = binding.value
            if call in inputs or (op_name(call) == VIEW and call.args[0] in inputs):
                inputs.add(binding.var)
            elif op_name(call) == CALL:
                found[call.args[0]].update(n for n, arg in enumerate(call.args[1]) if arg in inputs)
    return found


def _unaligned(func: tirx.PrimFunc, old: Any) -> tirx.PrimFunc:
    """Return func with a buffer among its parameters whose elements alone are aligned."""
    ty = old.ty
    size = tvm.DataType(str(ty.dtype)).itemsize
    new = tirx.decl_buffer(ty.shape, ty.dtype, old.name, data_alignment=size, layout=ty.layout)
    return tvm_ffi.structural_map(func, (type(old), lambda var: new if var.same_as(old) else var))
