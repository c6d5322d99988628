"""Rows that the output is made of count; rows that nothing reads do not."""

import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer as tiny
from tests.strategies import ModuleBuilder
from tvmq.plan.nodes import index
from tvmq.quantize.importance import LEAST, _rows, row_importance, shown_rows

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


def test_padding_behind_a_mask_is_hidden_and_images_hide_nothing():
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 4, 8), "float32"))
    mask = relax.Var("mask", relax.TensorType((1, 4, 1), "float32"))
    tokens = make.linear("inner", x, 8)
    total = make.bind("total", op.sum(make.bind("seen", op.multiply(tokens, mask)), axis=[1]))
    mod = make.module([x, mask], make.linear("head", total, 3))
    sites = {name: node for name, node in index(mod).by_name.items() if node.kind == "linear"}
    masks = [[1.0, 1, 0, 0], [1.0, 1, 1, 0]]
    batches = [(torch.randn(1, 4, 8), torch.tensor(each).reshape(1, 4, 1)) for each in masks]
    found = shown_rows(mod, sites, batches, seed=0)
    # No sample shows the last token: row_importance says of such rows what they count.
    assert found["inner"].tolist() == [[1, 1, 0, 1], [1, 1, 1, 1]]
    assert found["head"].tolist() == [[1], [1]]
    assert shown_rows(tiny.canonical(), SITES, BATCHES, seed=0) == {}
