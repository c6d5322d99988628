"""What a model's stages walk over is bounded and from all over the data."""

from dataclasses import replace

import torch

from tests import tiny_transformer as tiny
from tests.quantize.test_refine import model


def test_a_walk_takes_what_fits_from_all_over_the_data(monkeypatch):
    monkeypatch.setattr("tvmq.quantize.model.samples_within", lambda main: 3)
    batches = [(torch.full(tiny.SHAPE, float(i)),) for i in range(9)]
    walked = replace(model(), batches=batches).walked()
    assert [float(batch[0].mean()) for batch in walked] == [0.0, 3.0, 6.0]


def test_sites_multiply_and_a_transformer_has_no_images():
    assert {"blocks.0.fc1", "head"} <= set(model().sites())
    assert all(node.kind == "linear" for node in model().sites().values())
    assert model().images() == frozenset()
    assert len(model().units()) == 5
