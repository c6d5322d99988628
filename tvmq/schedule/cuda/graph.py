"""One launch for many kernels: main once more, with its kernels in CUDA graphs."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from tvmq.gpu import GRAPH


@tvm.transform.module_pass(opt_level=0, name="AddCudaGraph")
class AddCudaGraph:
    """Add the function `graph`, which computes what main does.

    Its first call runs every kernel and records them; later ones launch what was recorded, at once. Kernels
    that read an input or write an output stay outside: where those lie is another place at every call. The
    constants, main's last parameter, must be the same at every call.

    Before: main(x, params):  a = alloc_storage(...); k0(x, a); k1(a, b); k2(b, c); k3(c, out)
    After:  main, and graph(x, params): a, b, c = get_cached_alloc(...); k0(x, a); run_or_capture(k1, k2); ...

    Runs when memory is planned, and before it is allocated.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return mod with the function, and those that it records."""
        main = relax.utils.copy_with_new_vars(mod["main"])
        marks = {"global_symbol": GRAPH, "num_input": len(main.params) - 1}
        kernels = {gvar: func for gvar, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
        alone = tvm.IRModule(kernels)
        alone[GRAPH] = main.with_attrs(marks)
        with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
            recorded = relax.transform.RewriteCUDAGraph()(alone)
        result = mod.clone()
        for gvar, func in recorded.functions.items():
            if isinstance(func, relax.Function):
                result[gvar] = func
        return result
