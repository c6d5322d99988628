"""What every test file shares."""

from __future__ import annotations

import pytest

from tvmq.environment import cpu_features


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked isa(...) on a CPU that lacks one of the features."""
    missing = sorted({name for mark in item.iter_markers("isa") for name in mark.args} - cpu_features())
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
