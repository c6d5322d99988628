"""Values of a module one at a time equal those of a whole run."""

from __future__ import annotations

import torch

from tests import tiny_transformer
from tvmq.analysis.lockstep import Program, known_outside


def test_a_value_computed_alone_equals_that_of_the_whole_run():
    program = Program(tiny_transformer.canonical())
    (x,) = tiny_transformer.inputs(1)
    floats, (output,) = program.run((torch.from_numpy(x),))
    again = program.value("head.bias", known_outside(floats, frozenset({"head", "head.bias"})))
    assert torch.equal(again, output)
    assert torch.equal(program.value("head.bias", {"x": torch.from_numpy(x)}.get), output)


def test_what_is_known_is_not_computed():
    program = Program(tiny_transformer.canonical())
    known = {"norm": torch.zeros(tiny_transformer.SHAPE)}
    zero = {name: known["norm"] for name in program.variables if name.startswith("norm")}
    bias = tiny_transformer.transformer().head.bias.detach()
    assert torch.allclose(program.value("head.bias", zero.get), bias.expand(1, -1))
