from tvm import relax
from tvm.relax import op

from tvmq.passes.composite_body import KERNEL, SITE, Body, integer, tensor_type
from tvmq.passes.rebuild import bindings


def test_a_body_becomes_a_described_function_of_its_bindings():
    x = relax.Var("x", tensor_type((2, 3), "int32"))
    table = relax.Var("table", tensor_type((4,), "uint8"))
    body = Body()
    y = body.lookup(body(op.add(x, integer(1))), table, (2, 3))
    func = body.finish([x, table], y, "table", "site", {"size": 4})
    assert [b.value.op.name for b in bindings(func)] == ["relax.add", "relax.take"]
    assert [int(d) for d in func.ret_ty.shape] == [2, 3]
    assert {key: func.attrs[key] for key in (KERNEL, SITE, "tvmq.size")} == {
        KERNEL: "table", SITE: "site", "tvmq.size": 4
    }  # fmt: skip
