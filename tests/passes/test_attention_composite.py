"""What composites of attention say of themselves; their numbers are tested in test_composites.py."""

import tvm

from tests.passes.composite_cases import CASES
from tvmq.passes.composites import attributes
from tvmq.passes.verify_level import verify


def test_the_attributes_count_what_is_added_to_the_scores():
    found = {name: attributes(case().func) for name, case in CASES.items() if name.startswith("attention")}
    assert {name: (a["biases"], a["mask"]) for name, a in found.items()} == {
        "attention": (0, 0),
        "attention of large logits": (0, 0),
        "attention without shift": (0, 0),
        "attention to 4 bits": (0, 0),
        "attention with a bias": (1, 0),
        "attention in windows": (2, 0),
        "attention in another order": (1, 1),
        "attention with hidden keys": (0, 1),
        "attention with hidden pairs": (1, 1),
    }


def test_a_composite_is_of_the_integer_level():
    func = CASES["attention with hidden pairs"]().func
    verify(tvm.IRModule({"main": func_calling(func), "attention_0": func}), "integer")


def func_calling(func):
    builder = tvm.relax.BlockBuilder()
    params = [tvm.relax.Var(p.name, p.ty) for p in func.params]
    with builder.function("main", params):
        gvar = builder.add_func(func, "attention_0")
        with builder.dataflow():
            out = builder.emit_output(tvm.relax.Call(gvar, params))
        builder.emit_func_output(out)
    return builder.get()["main"]
