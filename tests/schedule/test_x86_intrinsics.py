"""The instructions compute what their plain descriptions say, at the ends of every range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm

from tests.schedule.isa_cases import VNNI_NAMES
from tests.schedule.linear_cases import SMALL, compiled_once, random_case
from tvmq.schedule import x86_intrinsics


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [(255, -127, -(2**20)), (255, 127, 2**20), (0, 127, 0), (1, -128, 7)]
)
@pytest.mark.parametrize("isa", VNNI_NAMES)
def test_extreme_operands_do_not_saturate_on_the_way(isa: str, x: int, weight: int, bias: int) -> None:
    spec = replace(SMALL, inputs=512, out_dtype="float32")
    arguments, _ = random_case(spec)
    for argument, value in zip(arguments, (x, weight, bias, 1), strict=True):
        argument[...] = value
    out = tvm.runtime.tensor(np.zeros((spec.rows, spec.outputs), "float32"))
    compiled_once(spec, isa)(*map(tvm.runtime.tensor, arguments), out)
    np.testing.assert_array_equal(out.numpy(), np.float32(512 * x * weight + bias))


def test_registering_twice_is_registering_once() -> None:
    x86_intrinsics.register()
    x86_intrinsics.register()
