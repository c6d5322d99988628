import itertools

import numpy as np
import pytest
import torch

from tests.strategies import transformer_block
from tvmq import reference
from tvmq.calibrate.balancing import PLAIN, _decide, _nothing, _Site, balance_factors
from tvmq.calibrate.rows import Rows
from tvmq.passes.balance import Balance, Balancing
from tvmq.passes.balance_groups import Consumer, Group, find_groups
from tvmq.spec import Precision


def data(samples=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 5, 8, generator=generator),) for _ in range(samples)]


def rows_of(mod, batches):
    rows = Rows([group.value for group in find_groups(mod)], batches=len(batches))
    for batch in batches:
        reference.run(mod, batch, observe=rows.observe)
    return rows


def quantized_output_error(mod, batches):
    """Return the squared error of fc1's output once its input and weight are rounded as int8 sites are."""
    group = next(g for g in find_groups(mod) if g.site == "norm2")
    kept = []
    for batch in batches:
        reference.run(mod, batch, observe=lambda n, v: kept.append(v) if n == "norm2" else None)
    x, w = torch.cat(kept).double(), torch.from_numpy(group.consumers[0].weight[:, 0]).double()
    scale = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
    w_scale = w.abs().amax(0) / 127
    rounded = ((x / scale).round() * scale) @ ((w / w_scale).round() * w_scale)
    return ((rounded - x @ w) ** 2).mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balancing_lowers_the_error_of_quantized_linears_on_other_data(seed):
    mod = transformer_block(seed, spread=3.0)
    balanced = Balance(balance_factors(mod, rows_of(mod, data(16))))(mod)
    other = data(8, seed=1)
    assert quantized_output_error(balanced, other) < 0.5 * quantized_output_error(mod, other)


def decided(rows, weight, bits=(8, 8), *, shiftable=True, mixes=True):
    """Return the site of one consumer and what is chosen for it."""
    group = Group("norm", "norm", None, (Consumer("fc", weight, mixes),), shiftable)
    site = _Site(group, rows, bits, "mse")
    return site, _decide(group, site) or _nothing(group.channels)


@pytest.mark.parametrize(("seed", "bits"), [(0, (8, 8)), (1, (4, 8)), (2, (4, 4))])
def test_the_choice_is_nearly_the_best_of_all(seed, bits):
    """Brute force over the factors of 3 channels in octaves, around the middle."""
    rng = np.random.default_rng(seed)
    sizes = np.exp2(rng.uniform(-2, 2, 3))
    rows = ((rng.standard_normal((400, 3)) + rng.uniform(-2, 2, 3)) * sizes).astype(np.float32)
    weight = (rng.standard_normal((3, 1, 64)) * np.exp2(rng.uniform(-2, 2, (3, 1, 1)))).astype(np.float32)
    site, best = decided(rows, weight, bits)
    middle = ((rows.max(0) + rows.min(0)) / 2).astype(np.float32)
    grid = np.exp2(np.arange(-3, 4))
    errors = [
        site.error(Balancing(np.array([1, a, b], np.float32), middle))
        for a, b in itertools.product(grid, grid)
    ]
    assert site.error(best) < 1.2 * min(errors)
    assert min(errors) < 0.6 * max(errors)  # it matters
    assert site.error(best) <= site.error(_nothing(3))


def test_channels_far_from_zero_are_shifted_to_it():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((300, 4)) + np.array([50, -50, 0, 20])).astype(np.float32)
    weight = rng.standard_normal((4, 1, 8)).astype(np.float32)
    _, best = decided(rows, weight)
    assert np.abs(best.shifts - [50, -50, 0, 20]).max() < 2
    _, still = decided(rows, weight, shiftable=False)
    assert not still.shifts.any()


def test_depthwise_consumers_balance_their_input_alone():
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 8.0, 4.0])
    rows = (np.abs(rng.standard_normal((500, 3))) * sizes).astype(np.float32)
    weight = (rng.standard_normal((3, 9, 1)) / sizes[:, None, None]).astype(np.float32)
    _, best = decided(rows, weight, shiftable=False, mixes=False)
    np.testing.assert_allclose(best.factors / best.factors[0], sizes, rtol=0.25)


def test_sites_in_float_are_left_alone_and_fewer_bits_choose_otherwise():
    mod = transformer_block(spread=3.0)
    rows = rows_of(mod, data())
    whole = balance_factors(mod, rows)
    assert {"norm1", "norm2"} <= set(whole) <= {"norm1", "norm2", "attn.v"}
    assert set(balance_factors(mod, rows, precisions={"mlp.fc1": None})) == set(whole) - {"norm2"}
    low = balance_factors(mod, rows, precisions={"mlp.fc1": Precision(4, 8)})
    assert not np.array_equal(low["norm2"].factors, whole["norm2"].factors)
    again = balance_factors(mod, rows, precisions={"mlp.fc1": PLAIN})
    assert np.array_equal(again["norm2"].factors, whole["norm2"].factors)


def test_channels_that_are_always_zero_are_harmless():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 4)).astype(np.float32) * np.float32([0, 1, 2, 0])
    _, best = decided(rows, np.zeros((4, 1, 3), np.float32))
    assert np.isfinite(best.factors).all()
    _, best = decided(np.zeros((200, 4), np.float32), rng.standard_normal((4, 1, 3)).astype(np.float32))
    assert (best.factors == 1).all()


def test_a_group_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows of 'norm1'"):
        balance_factors(transformer_block(), Rows([], batches=1))


def test_a_head_with_one_large_row_keeps_the_others():
    """As of a probe fitted to standardized features, of which one hardly varies: its weight is huge."""
    rng = np.random.default_rng(0)
    spread = np.r_[0.005, np.ones(31)].astype(np.float32)
    rows = (spread * rng.standard_normal((16, 32))).astype(np.float32)
    weight = (rng.standard_normal((32, 1, 2)) / spread[:, None, None]).astype(np.float32)
    group = Group("norm", "mean", None, (Consumer("head", weight),), False, pooled=True)
    site = _Site(group, rows, (8, 8), "mse")
    found = _decide(group, site)
    assert found is not None
    assert site.error(found) < 0.1 * site.error(_nothing(32))
