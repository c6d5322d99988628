import numpy as np
import pytest

from tvmq.errors import UsageError
from tvmq.frontend.weights import check_finite, check_precision


def test_weights_that_are_not_finite_are_named_and_counted():
    bad = np.array([[1.0, np.nan], [np.inf, np.nan]], np.float32)
    with pytest.raises(UsageError, match=r"fc\.weight: holds 2 NaN and 1 infinite of 4 values"):
        check_finite([("good", np.ones(3, np.float32)), ("fc.weight", bad)])


def test_an_additive_mask_and_integers_pass():
    check_finite([("mask", np.array([0.0, -np.inf], np.float32)), ("ids", np.arange(3))])


def test_half_precision_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"w: is float16, tvmq starts from float32; call"):
        check_precision("w", "float16", "call model.float() first")
    check_precision("w", "int64", "")
