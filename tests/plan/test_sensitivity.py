"""On the small transformer: measures agree with what quantizing a group does, as far as they claim to."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests import tiny_transformer
from tvmq import reference
from tvmq.errors import UsageError
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import precision_of
from tvmq.plan.divergence import divergence
from tvmq.plan.formats import value_formats
from tvmq.plan.groups import site_groups
from tvmq.plan.sensitivity import DEFAULT, MEASURES, Local, Losses, Subject, sensitivities
from tvmq.quantize.choose import choose
from tvmq.spec import Precision

NAMES = ("w8a8", "w4a8", "w2a8")
BATCHES = [(torch.from_numpy(x),) for x in tiny_transformer.inputs(6, seed=5)]


@cache
def subject() -> Subject:
    nodes, numbers = tiny_transformer.nodes(), {}
    for name in NAMES:
        precision = precision_of(name)
        assert precision is not None
        plan = assign_precisions(nodes, "17", bits=precision)
        formats = value_formats(nodes, lambda _: True, {s.site: s.precision for s in plan.sites})
        numbers[name] = choose(nodes, formats, tiny_transformer.calibration())
    groups = site_groups(nodes, assign_precisions(nodes, "17"), [Precision(4, 8), Precision(2, 8)])
    return Subject(tiny_transformer.canonical(), nodes, groups, numbers, BATCHES)


@cache
def losses(measure: str) -> Losses:
    return sensitivities(subject(), measure)


def test_the_whole_model_loses_about_what_its_groups_lose():
    mod, numbers = tiny_transformer.canonical(), subject().numbers["w4a8"]
    found = 0.0
    for batch in BATCHES:
        wanted, quantized = (reference.run(m, batch) for m in (mod, InsertQdq(numbers)(mod)))
        found += divergence(wanted, quantized)
    known = losses("output")
    total = sum(known[g.name, "w4a8" if "w4a8" in g.choices else "w8a8"] for g in subject().groups)
    assert 0.4 < total / (found / len(BATCHES)) < 2.5


@pytest.mark.parametrize("measure", MEASURES)
def test_fewer_bits_lose_more_by_every_measure(measure: str):
    found = losses(measure)
    assert found.keys() == {(g.name, name) for g in subject().groups for name in g.choices if name != "float"}
    for group in subject().groups:
        if "w4a8" in group.choices and group.name != "blocks.1":
            assert 0 <= found[group.name, "w8a8"] < found[group.name, "w4a8"] < found[group.name, "w2a8"]


def test_the_default_predicts_the_divergence_itself():
    exact, found = losses("output"), losses(DEFAULT)
    ratios = [found[at] / exact[at] for at in exact if exact[at] > 1e-6]
    assert len(ratios) > 20
    assert 0.6 < float(np.median(ratios)) < 1.6
    assert spearmanr([found[at] for at in exact], list(exact.values())).statistic > 0.9


def test_pooled_losses_share_what_a_groups_errors_count_and_keep_their_sizes():
    measured, scales, pooled = losses("projected"), losses("fisher"), losses("pooled")
    for group in subject().groups:
        few = [(group.name, name) for name in group.choices if name not in ("float", "w8a8")]
        if not few:
            continue
        counts = [math.log(pooled[at] / scales[at]) for at in few]
        assert counts == pytest.approx([counts[0]] * len(few))
        assert counts[0] == pytest.approx(np.mean([math.log(measured[at] / scales[at]) for at in few]))
        assert pooled[group.name, "w8a8"] == measured[group.name, "w8a8"]


@pytest.mark.parametrize("measure", ["projected", "sqnr"])
def test_losses_are_of_samples_however_a_site_shapes_them(measure: str):
    random = torch.Generator().manual_seed(0)
    exact, error, gradient = (torch.randn(2, 32, 8, generator=random) for _ in range(3))

    def site(*shape: int) -> Local:
        return Local(exact.reshape(shape), error.reshape(shape), 2, gradient.reshape(shape), 2, 0.0, 0.0)

    loss = MEASURES[measure].loss
    wanted = loss([site(2, 32, 8)])
    assert loss([site(16, 4, 8)]) == pytest.approx(wanted)
    # Tied sites of different first axes add up like any others.
    assert loss([site(2, 32, 8), site(16, 4, 8)]) == pytest.approx(loss([site(2, 32, 8)] * 2))
    assert loss([site(1, 64, 8), site(2, 32, 8)]) == pytest.approx(loss([site(2, 32, 8)] * 2))
    odd = replace(site(2, 32, 8), samples=5)
    assert loss([odd, odd]) > 0


def test_an_unknown_measure_is_a_sentence():
    with pytest.raises(UsageError, match=r"measure='hawq' is unknown; choose one of \['fisher', 'hessian'"):
        sensitivities(subject(), "hawq")
