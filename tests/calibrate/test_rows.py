import numpy as np
import torch

from tvmq.calibrate.rows import MOST_ROWS, Rows


def test_rows_are_taken_evenly_and_memory_is_bounded():
    rows = Rows(["x"], batches=16)
    for _ in range(40):
        rows.observe("x", torch.arange(300.0).reshape(1, 100, 3))
        rows.observe("y", torch.zeros(2, 3))
    found = rows.of("x")
    assert found.shape == (MOST_ROWS, 3)
    first = found[: MOST_ROWS // 16, 0] / 3
    assert (first[0], first[-1]) == (0, 99)
    assert set(np.diff(first)) <= {1, 2}
    assert rows.of("y") is None


def test_channels_of_images_are_axis_1():
    rows = Rows(["x"], images=["x"], batches=1)
    image = torch.arange(2 * 3 * 4.0).reshape(1, 3, 2, 4)
    rows.observe("x", image)
    np.testing.assert_array_equal(rows.of("x"), image[0].reshape(3, 8).T)


def test_few_large_batches_give_as_many_rows_as_many_small_ones():
    for batches in (1, 2, 16):
        rows = Rows(["x"], batches=batches)
        for part in torch.randn(16, 100, 3).split(16 // batches):
            rows.observe("x", part)
        assert len(rows.of("x")) == MOST_ROWS
