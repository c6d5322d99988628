import importlib.util

import numpy as np
import pytest

from tests.tune.synthetic import SPACE, cost, kernel
from tvmq.errors import EnvironmentMismatchError
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.tune.cost_model import CostModel, family, features, require_xgboost


def test_what_one_shape_taught_ranks_another():
    model = CostModel()
    points = list(SPACE)
    assert model.predict(kernel(), points) is None
    for at in np.random.default_rng(0).permutation(len(points))[:90]:
        for shape in (9, 10, 11):
            made = kernel(shape)
            model.learn(made, points[at], cost(made, points[at]) / cost(made, SPACE.default))
    unseen = kernel(12)
    guesses = model.predict(unseen, points)
    assert guesses is not None
    real = np.array([cost(unseen, d) for d in points])
    assert real[np.argmin(guesses)] < 1.1 * real.min()
    assert np.corrcoef(np.argsort(np.argsort(guesses)), np.argsort(np.argsort(real)))[0, 1] > 0.9


def test_features_are_the_numbers_of_shape_and_decisions():
    spec = LinearSpec(rows=3, inputs=4, outputs=5, out_dtype="uint8", low=1)
    made = Kernel((spec, "x86"), "linear", (), lambda **_: None, SPACE)
    found = features(made, {"rows": 2, "columns": 8, "outer": "columns"})
    assert found == [3, 4, 5, 0, 0, 0, 0, 0, 1, 2, 8, 1]
    assert family(made) != family(kernel())
    assert family(kernel(3)) == family(kernel(4))


def test_a_missing_xgboost_is_named(monkeypatch: pytest.MonkeyPatch):
    require_xgboost()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMismatchError, match=r"xgboost not installed.*\[compile,tune\]"):
        require_xgboost()
