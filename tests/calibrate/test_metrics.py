import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tvmq.calibrate.metrics import METRICS, Fisher, Ranking, attention_maps, random_pairs

names = st.sampled_from(sorted(METRICS))


def draw(seed, rows=6, columns=5):
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((rows, columns))
    return tuple(map(torch.from_numpy, (exact, exact + 0.3 * rng.standard_normal(exact.shape), exact**2)))


def error(metric, exact, approximate, gradient=None):
    return float(metric.error(metric.sums(exact, approximate, gradient).sum(-1).numpy()))


def ranking_by_definition(exact, approximate, theta):
    """Return Liu et al.'s sum over rows and all pairs."""
    total = 0.0
    for a, b in zip(exact.tolist(), approximate.tolist(), strict=True):
        for i in range(len(a)):
            for j in range(i + 1, len(a)):
                sign = (a[i] > a[j]) - (a[i] < a[j])
                total += max(0.0, theta - (b[i] - b[j]) * sign)
    return total


def pearson_by_definition(exact, approximate):
    rows = zip(exact.numpy(), approximate.numpy(), strict=True)
    return 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in rows])


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_metrics_are_their_definitions(seed):
    exact, approximate, gradient = draw(seed)
    a, b, g = exact.numpy(), approximate.numpy(), gradient.numpy()
    expected = {
        "mse": np.mean((a - b) ** 2),
        "cosine": 1 - np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b),
        "pearson": pearson_by_definition(exact, approximate),
        "ranking": pearson_by_definition(exact, approximate)
        + 0.1 * ranking_by_definition(exact, approximate, 0.2) / (6 * 10),
        "fisher": np.sum(g**2 * (a - b) ** 2),
    }
    for name, metric in METRICS.items():
        assert error(metric(), exact, approximate, gradient) == pytest.approx(expected[name], rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(seeds, names, st.integers(1, 5))
def test_rows_may_come_in_any_parts(seed, name, cut):
    metric, values = METRICS[name](), draw(seed)
    first, second = [v[:cut] for v in values], [v[cut:] for v in values]
    parts = metric.sums(*second) + metric.sums(*first)
    torch.testing.assert_close(parts, metric.sums(*values), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(seeds, names)
def test_exact_outputs_have_no_error_and_noise_has(seed, name):
    exact, approximate, gradient = draw(seed)
    metric = METRICS[name]()
    least = error(metric, exact, exact, gradient)
    if name == "ranking":  # its theta asks for margins that even exact maps need not have
        assert least <= error(metric, exact, approximate, gradient) + 0.1 * 0.2
    else:
        assert least == pytest.approx(0, abs=1e-12)
        assert error(metric, exact, approximate, gradient) > 1e-6


@settings(deadline=None, max_examples=50)
@given(names, st.sampled_from([0.0, 0.1, -3.0]))
def test_constants_and_zeros_give_finite_errors(name, value):
    exact, _, gradient = draw(0)
    constant = torch.full_like(exact, value)
    for pair in ((constant, constant), (exact, constant), (constant, exact)):
        assert math.isfinite(error(METRICS[name](), *pair, gradient))
    if name in ("cosine", "pearson"):
        assert error(METRICS[name](), constant, constant) == pytest.approx(0, abs=1e-12)
    if name == "pearson":
        assert error(METRICS[name](), exact, constant) == 1


def test_a_shuffled_order_of_keys_is_ranked_worse_than_a_rounded_one():
    exact = attention_maps(
        torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)) * 3, torch.eye(4), 1
    )
    rounded = (exact * 16).round() / 16
    assert error(Ranking(), exact, rounded) < error(Ranking(), exact, exact.flip(1))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 80), seeds)
def test_random_pairs_are_different_and_seeded(width, count, seed):
    i, j = random_pairs(width, count, seed)
    assert len(i) == min(count, width * (width - 1) // 2)
    assert ((i >= 0) & (i < j) & (j < width)).all()
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == len(i)
    np.testing.assert_array_equal(random_pairs(width, count, seed), (i, j))


def test_random_pairs_cover_all_pairs_evenly():
    seen = np.zeros((7, 7))
    for seed in range(2000):
        i, j = random_pairs(7, 5, seed)
        seen[i, j] += 1
    counts = seen[np.triu_indices(7, 1)]
    assert seen.sum() == counts.sum() == 10_000
    assert np.abs(counts - 10_000 / 21).max() < 5 * np.sqrt(10_000 / 21)


def test_ranking_of_some_pairs_is_near_that_of_all():
    exact, approximate, _ = draw(3, rows=40, columns=64)
    some = error(Ranking(pairs=512), exact, approximate)
    assert some == pytest.approx(error(Ranking(pairs=10**6), exact, approximate), rel=0.05)


def test_attention_maps_are_rows_of_softmax():
    q, k = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    maps = attention_maps(q, k, 0.5)
    assert maps.shape == (15, 5)
    logits = (0.5 * q[1, 2] @ k[1].T).double().exp()
    torch.testing.assert_close(maps[7].double(), logits / logits.sum(), rtol=1e-5, atol=1e-6)


def test_fisher_asks_for_gradients():
    with pytest.raises(ValueError, match="no gradient is given"):
        Fisher().sums(torch.zeros(1, 1), torch.zeros(1, 1), None)
