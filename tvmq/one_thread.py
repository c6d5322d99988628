"""Let torch compute with one thread: the same seed gives the same artifact on every number of cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread within the block, or within a function that has this as decorator.

    NumPy's matrix products are not under its control: where numbers depend on them, einsum takes their place.
    A sum that is split over threads rounds differently for each number of them; a Cholesky factor of 384 rows
    does. And where the cores are busy with other work, torch's threads wait for each other, spinning, for ten
    times as long as one takes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
