"""How many threads kernels run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tvmq.environment import allowed_cpus, default_threads
from tvmq.runtime import use_threads


@contextmanager
def pool_of(threads: int) -> Iterator[None]:
    """Run kernels on so many threads; TVM's own configuration would bind this thread to a core for good."""
    if threads > len(allowed_cpus()):
        pytest.skip(f"this process has no {threads} CPUs")
    use_threads(threads)
    try:
        yield
    finally:
        use_threads(default_threads())
