"""The unary functions that become 256-entry tables, in float64 NumPy, by their Relax name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def erf(x: Floats) -> Floats:
    """Return the error function; NumPy has none, and a table of 256 values needs no fast one."""
    return np.array([math.erf(v) for v in x.ravel()], np.float64).reshape(x.shape)


def normal_cdf(x: Floats) -> Floats:
    """Return Phi, the probability that a standard normal number is below x."""
    return np.asarray(0.5 * (1.0 + erf(x / np.sqrt(2.0))), np.float64)


def gelu(x: Floats) -> Floats:
    """Return x * Phi(x) (Hendrycks and Gimpel, 2016)."""
    return x * normal_cdf(x)


def gelu_tanh(x: Floats) -> Floats:
    """Return the tanh form of GELU."""
    inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1.0 + np.tanh(inner)), np.float64)


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), np.float64)


def silu(x: Floats) -> Floats:
    """Return x * sigmoid(x)."""
    return x * sigmoid(x)


UNARY_FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "silu": silu,
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0.0),
        "relu6": lambda x: np.clip(x, 0.0, 6.0),
    }
)


def unary_name(operator: str, args: Sequence[Any]) -> str:
    """Return an operator's short name; clip(x, 0, 6) is "relu6", for which Relax has no operator."""
    name = operator.rsplit(".", 1)[-1]
    is_relu6 = name == "clip" and tuple(float(bound.value) for bound in args[1:]) == (0.0, 6.0)
    return "relu6" if is_relu6 else name
