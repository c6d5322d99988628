"""scripts/arm_model: which loop counts, what is multiplied in it, and what README claims of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ASSEMBLY = """
.LBB0_1:
	ldr	q0, [x0]
.LBB0_2:
	sdot	v1.4s, v0.16b, v2.16b
.Ltmp3:
	smull2	v3.8h, v0.16b, v2.16b // comment
	b.ne	.LBB0_2
	sdot	v1.4s, v0.16b, v2.16b
	cbnz	x1, .LBB0_1
	b	.LBB0_4
.LBB0_4:
	ret
"""
ANALYSER = any(shutil.which(f"llvm-mca-{version}") for version in range(17, 38))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "shared")
    monkeypatch.syspath_prepend(ROOT / "scripts" / "arm_model")
    import arm_model

    return arm_model


def test_only_a_loop_that_holds_no_other_is_looked_at(model: Any):
    (body,) = model.loops(ASSEMBLY)
    assert [line.split()[0] for line in body] == ["sdot", "smull2"]
    assert model.multiplied(body) == 16 + 8


@pytest.mark.skipif(not ANALYSER, reason="llvm-mca of LLVM 17 or later is not installed (Debian: llvm-19)")
def test_linears_and_pointwise_convolutions_fill_the_multiplier(model: Any):
    a72, a76, _ = model.CORES
    for name in ("linear 197 x 384 x 1536", "convolution 1 x 1, 256 to 64"):
        build, _ = model.families.FAMILIES[name]
        assert model.rate(build, a76) > 0.9 * 32
        assert model.rate(build, a72) > 0.8 * 8


def test_readme_has_the_table_and_a_row_for_each_family(model: Any):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("<!-- measured by scripts/arm_model.sh -->")[1].split("<!-- end of measured -->")[0]
    for name in model.families.FAMILIES:
        assert re.search(rf"^\\| {re.escape(name)} \\|", part, re.M), name
