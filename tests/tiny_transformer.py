"""A small torch transformer that the end-to-end tests compile, and typical inputs for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from torch.nn import functional as F

import tvmq
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.calibrate.calibration import Calibration
from tvmq.calibrate.collect import collect
from tvmq.formats import Quantization
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.plan.formats import Formats, value_formats
from tvmq.plan.nodes import Nodes, index
from tvmq.quantize.choose import choose, gram_inputs

TOKENS, WIDTH, HEADS, CLASSES = 9, 64, 2, 10
SHAPE = (1, TOKENS, WIDTH)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks, a norm, and a head that reads the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(x))[:, 0])


@cache
def transformer() -> Transformer:
    """Return the model, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer().eval()


def inputs(count: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Return float32 arrays [1, 9, 64] with channels of different size, as activations have."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.standard_normal(WIDTH) / 2)
    return [(rng.standard_normal(SHAPE) * sizes).astype(np.float32) for _ in range(count)]


def example() -> tuple[torch.Tensor]:
    """Return what the model is called with."""
    return (torch.zeros(SHAPE),)


def compiled(model: nn.Module | None = None, **options: Any) -> tvmq.CompiledModel:
    """Compile the transformer, or another model of its input; a few seconds."""
    given = {"calibration": inputs(), "example_inputs": example(), "threads": 1, **options}
    return tvmq.compile(model or transformer(), **given)


@cache
def model() -> tvmq.CompiledModel:
    """Return the transformer compiled with no options, once per test run."""
    return compiled()


@cache
def canonical() -> tvm.IRModule:
    """Return the transformer at level canonical."""
    return canonicalize(import_model(transformer(), example()))


@cache
def nodes() -> Nodes:
    """Return the canonical module's index."""
    return index(canonical())


@cache
def formats() -> Formats:
    """Return how each value is stored when every site is quantized."""
    return value_formats(nodes(), lambda name: True)


@cache
def calibration() -> Calibration:
    """Return the statistics of the canonical module over `inputs()`."""
    mod = canonical()
    return collect(
        mod,
        list(as_batches(inputs(), input_specs(mod))),
        values=formats().values.__contains__,
        gram_inputs=gram_inputs(nodes(), formats()),
    )


@cache
def quantization(requantize: str = "pot") -> Quantization:
    """Return the numbers that follow from it all."""
    return choose(nodes(), formats(), calibration(), requantize=requantize)


def qdq_module() -> tvm.IRModule:
    """Return the transformer at level qdq."""
    return tvm.transform.Sequential([InsertQdq(quantization())])(canonical())
