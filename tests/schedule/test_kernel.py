"""A kernel's name in a database, and what its decisions build."""

from __future__ import annotations

from typing import Any

from tvmq.schedule.kernel import Kernel
from tvmq.schedule.space import Space


def test_tuning_knows_a_kernel_by_what_decides_its_speed():
    def build(**decisions: Any) -> Any:
        return decisions

    space = Space({"lanes": (8, 16)}, {"lanes": 16})
    exact = Kernel(("norm", 3), "norm", (), build, space)
    shared = Kernel(("norm", 3), "norm", (), build, space, ("norm",))
    assert (exact.semantics, shared.semantics) == ("('norm', 3)", "('norm',)")
    assert exact.function() == {"lanes": 16}
    assert exact.function({"lanes": 8}) == {"lanes": 8}
