"""One kernel of every family on emulated ARM cores; the slow tests of each family try many."""

from __future__ import annotations

import pytest

from tests.schedule import conv_cases
from tests.schedule.isa_cases import EMULATED, marked
from tvmq.schedule.conv_tiles import ConvDecision

pytestmark = pytest.mark.parametrize("isa", [marked(name) for name in EMULATED])

FAMILIES = {
    "linear": (conv_cases.geometry_of(36, 33, 1, batch=1, rows=1, columns=11), "table", 8),
    "linear of few bits": (conv_cases.geometry_of(64, 16, 1, batch=1, rows=1, columns=5), "uint8", 4),
    "stem": (conv_cases.geometry_of(3, 17, 3, batch=1, top=1, left=1, stride_rows=2), "trunk", 8),
    "depthwise": (conv_cases.geometry_of(24, 24, 3, batch=1, groups=24, top=1, left=1), "int8", 8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_exact(isa: str, family: str) -> None:
    geometry, epilogue, bits = FAMILIES[family]
    spec = conv_cases.spec_of(geometry, epilogue, bits)
    decision = None if geometry.depthwise else ConvDecision(pixel_tile=2, column_tile=1)
    conv_cases.check(conv_cases.compiled(spec, isa, decision), spec, isa)
