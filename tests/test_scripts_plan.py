"""scripts/plan: the cases and their limits, the rows and their table, and the whole path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tvmq.evaluation import Comparison

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "scripts" / name for name in ("plan", "shared", "accuracy")]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the measurement, which import each other as scripts do."""
    known = sys.modules.pop("results", None)  # scripts/accuracy has one too
    for folder in reversed(FOLDERS):
        monkeypatch.syspath_prepend(folder)
    import cases
    import results

    yield SimpleNamespace(cases=cases, results=results)
    sys.modules.pop("results")
    if known is not None:
        sys.modules["results"] = known


def row(scripts: Any, name: str, **more: Any) -> Any:
    comparison = Comparison(agreement=95.0, cosine=0.99, accuracy=84.0, drop=1.0, low=0.5, high=1.5)
    known = {"key": "k", "images": 1000, "preset": "fast", "bytes": 12_340_000, "seconds": 90.0, "threads": 1}
    given = {"name": name, "comparison": comparison, "bits": {"w8a8": 3}, "cpu": "a CPU"}
    return scripts.results.Row(**known | given | more)


def test_limits_follow_from_what_was_measured_before(scripts: Any):
    cases = scripts.cases
    rows = {cases.EIGHT: row(scripts, cases.EIGHT), cases.FASTEST: row(scripts, cases.FASTEST, ms=10.0)}
    found = {case.name: case.limits(rows) for case in cases.CASES if case.after in ("", *rows)}
    assert found["auto, half the size of 8 bits"] == {"max_size_mb": 6.17}
    assert found["auto, 10 % slower than the fastest"] == {"max_latency_ms": 11.0}
    assert found[cases.EIGHT] == {}
    assert [case.name for case in cases.needed(["auto, size of 6 bits"])] == [
        cases.SIX, "auto, size of 6 bits",
    ]  # fmt: skip
    order = [case.name for case in cases.CASES]
    assert all(order.index(case.after) < order.index(case.name) for case in cases.CASES if case.after)


def test_rows_are_kept_in_order_and_shown(scripts: Any, tmp_path: Path):
    cases, results = scripts.cases, scripts.results
    later, first = row(scripts, cases.FASTEST, ms=9.5), row(scripts, cases.EIGHT)
    results.save(tmp_path / "rows.json", {cases.FASTEST: later, cases.EIGHT: first})
    found = results.load(tmp_path / "rows.json")
    assert list(found.items()) == [(cases.EIGHT, first), (cases.FASTEST, later)]
    table = results.markdown([first, later])
    assert "| the fastest plan | 12.34 | 9.50 | 1.00 [0.50, 1.50] | 95.0 % | 1.5 |" in table
    assert table.endswith("a CPU, 1 thread; 1,000 test images, preset fast; agreement is with float.")


@pytest.mark.slow
def test_the_whole_path_runs(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *FOLDERS[1:]]))}
    command = [sys.executable, str(FOLDERS[0] / "plan.py"), "--smoke", "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "plan_smoke.json").read_text())
    assert (found["name"], found["images"]) == ("uniform, 8 bits", 16)
