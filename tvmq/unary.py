"""The unary functions that become 256-entry tables, in float64 NumPy, by their Relax name.

Functions that Relax has no operator for (hard-swish, Mish, ELU) stand as chains of element-wise operators;
ELEMENTWISE holds what such chains are made of.
"""

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

NUMPY = (
    *("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "negative", "abs", "sign"),
    *("exp", "log", "sqrt", "square", "sin", "cos", "floor", "ceil", "round", "where"),
    *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
    *("logical_and", "logical_or", "logical_not", "zeros_like", "ones_like"),
)
# By Relax name, of the arguments in their order (a leaky ReLU's slope is the second); truths are NumPy bools.
ELEMENTWISE: Mapping[str, Callable[..., npt.NDArray[Any]]] = MappingProxyType(
    {
        **{name: function for name, function in UNARY_FUNCTIONS.items() if name != "relu6"},
        **{name: getattr(np, name) for name in NUMPY},
        "astype": lambda x: x.astype(np.float64),
        "clip": np.clip,
        "erf": erf,
        "leakyrelu": lambda x, slope: np.where(x < 0, slope * x, x),
        "rsqrt": lambda x: 1.0 / np.sqrt(x),
    }
)
PROBES = np.array([-200.0, -100.0, 0.0, 100.0, 200.0])


def grows_no_faster(function: Callable[[Floats], Floats]) -> bool:
    """Whether |function(x)| is finite and grows at most like x, as activations do and squares do not.

    Then 8 bits hold the result about as well as they held x. An x * x in 8 bits has no small values left,
    and a mean of it is wrong.
    """
    low, half_low, zero, half_high, high = np.abs(function(PROBES))
    finite = np.isfinite([low, half_low, zero, half_high, high]).all()
    # A linear function doubles, offsets aside; a square has four times the value.
    return bool(finite and low <= 3 * half_low + 1 and high <= 3 * half_high + 1)


def unary_name(operator: str, args: Sequence[Any]) -> str:
    """Return an operator's short name; clip(x, 0, 6) is "relu6", for which Relax has no operator."""
    name = operator.rsplit(".", 1)[-1]
    is_relu6 = name == "clip" and tuple(float(bound.value) for bound in args[1:]) == (0.0, 6.0)
    return "relu6" if is_relu6 else name
