"""One kernel of every family on emulated ARM cores; the slow tests of each family try many."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule import conv_cases
from tests.schedule.emulated_kernel import needs_emulator, run_emulated
from tests.schedule.isa_cases import EMULATED, marked
from tests.schedule.pool_cases import pooled, pooling_of
from tvmq.schedule.conv_tiles import ConvDecision
from tvmq.schedule.pool import PoolSpec, pool_prim_func

FAMILIES = {
    "linear": (conv_cases.geometry_of(36, 33, 1, batch=1, rows=1, columns=11), "table", 8),
    "linear of few bits": (conv_cases.geometry_of(64, 16, 1, batch=1, rows=1, columns=5), "uint8", 4),
    "stem": (conv_cases.geometry_of(3, 17, 3, batch=1, top=1, left=1, stride_rows=2), "trunk", 8),
    "depthwise": (conv_cases.geometry_of(24, 24, 3, batch=1, groups=24, top=1, left=1), "int8", 8),
}


@pytest.mark.parametrize("isa", [marked(name) for name in EMULATED])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_exact(isa: str, family: str) -> None:
    geometry, epilogue, bits = FAMILIES[family]
    spec = conv_cases.spec_of(geometry, epilogue, bits)
    decision = None if geometry.depthwise else ConvDecision(pixel_tile=2, column_tile=1)
    conv_cases.check(conv_cases.compiled(spec, isa, decision), spec, isa)


@pytest.mark.slow
@needs_emulator("arm")
@pytest.mark.parametrize("operation", ["max", "mean"])
def test_what_needs_no_instruction_set_is_exact_on_32_bits(operation: str) -> None:
    geometry = conv_cases.geometry_of(19, 19, 3, top=1, left=1)
    pooling = pooling_of(operation, "uint8", geometry)
    x, expected = pooled(pooling, geometry)
    func = pool_prim_func(PoolSpec(geometry, pooling))
    _, found = run_emulated(func, [x, np.zeros_like(expected)], "rpi3", "cortex-a7")
    np.testing.assert_array_equal(found, expected)
