"""Rows that the output is made of count; rows that nothing reads do not."""

import numpy as np
import pytest
import torch

from tests import tiny_transformer as tiny
from tvmq.quantize.importance import LEAST, _rows, row_importance

SITES = {name: node for name, node in tiny.nodes().by_name.items() if node.kind == "linear"}
BATCHES = [(torch.from_numpy(x),) for x in tiny.inputs(6)]


def test_the_token_that_the_head_reads_counts_most():
    found = row_importance(tiny.canonical(), SITES, BATCHES, seed=0)
    assert set(found) == set(SITES)
    for site in ("blocks.1.proj", "blocks.1.fc2", "blocks.1.qkv.q"):  # what comes after mixes no tokens
        rows = found[site]
        assert len(rows) == tiny.TOKENS
        assert rows[0] > 0.8 * rows.sum()
        np.testing.assert_allclose(rows[1:] / rows.mean(), LEAST, rtol=0.3)
    assert found["blocks.1.qkv.v"].min() > 0.5  # attention hands all tokens to the first
    for rows in found.values():
        assert abs(float(rows.mean()) - 1) < 1e-5


def test_it_is_the_energy_of_the_jacobian():
    """Of a linear map from the site to the output, known exactly: the head's weight."""
    found = row_importance(tiny.canonical(), {"head": SITES["head"]}, BATCHES, seed=0)
    torch.testing.assert_close(found["head"], torch.ones(1))


def test_the_same_seed_gives_the_same_rows():
    first, second = (row_importance(tiny.canonical(), SITES, BATCHES[:2], seed=3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_samples_of_a_batch_count_the_same():
    found = _rows(torch.tensor([[1.0, 1.0], [8.0, 8.0], [3.0, 3.0], [0.0, 0.0]]), 1, 2)
    assert found.tolist() == pytest.approx([2 / 3, 4 / 3, 2 / 3, 4 / 3])
