"""Conversions as they are counted, beside those of really lowered modules."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from tests import tiny_transformer
from tvmq.passes.rebuild import bindings, op_name
from tvmq.pipeline import lower
from tvmq.plan.values import OUTSIDE, Reading, Value, conversions_ms, forms_of, values_of, with_sums
from tvmq.quantizer import Quantized, bits_of, quantized

DEPTH = 4


class Block(nn.Module):
    """A norm and two linears beside the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(nn.functional.gelu(self.a(self.n(x))))


class Two(nn.Module):
    """A convolution with two readers, of which one may be float, and joined halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.last(torch.cat([self.one(y).relu(), self.other(y).relu()], 1))


@cache
def model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if name == "transformer":
        return tiny_transformer.transformer(), tiny_transformer.SHAPE
    if name == "two":
        return Two().eval(), (1, 3, 6, 6)
    trunk = nn.Sequential(*[Block() for _ in range(DEPTH)], nn.LayerNorm(16), nn.Linear(16, 4))
    return trunk.eval(), (1, 5, 16)


def numbers(name: str, floats: list[str]) -> Quantized:
    net, shape = model(name)
    samples = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    bits = bits_of({"*": 8, **dict.fromkeys(floats, "float")})
    return quantized(net, samples[:1], samples, bits=bits, preset="fast")


QUICK = [
    ("trunk", []),
    ("trunk", ["0.b", "3.n"]),  # what its sum reads of the input is stored, and dequantized; a float norm
    ("transformer", ["blocks.0.qkv.*", "blocks.0.fc2", "blocks.1.norm1", "norm"]),
]
SLOW = [
    ("trunk", ["*"]),
    ("trunk", [str(DEPTH + 1)]),
    ("trunk", ["3.n"]),
    ("trunk", ["0.b"]),
    ("trunk", ["1.a", "gelu.1", "2.n"]),
    ("transformer", []),
    ("transformer", ["norm"]),  # of the first token alone
    ("transformer", ["blocks.0", "blocks.1.proj", "blocks.1.fc1", "gelu.1", "blocks.1.fc2"]),
    ("transformer", ["blocks.0.qkv.*", "blocks.0.fc2", "blocks.1.norm1", "head"]),
    ("two", []),
    ("two", ["other", "relu.1"]),
    ("two", ["stem"]),
]


CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "floats"), CASES)
def test_as_many_conversions_are_counted_as_the_lowered_module_has(name: str, floats: list[str]):
    found = numbers(name, floats)
    calls = [op_name(b.value) for b in bindings(lower(found.mod, found.numbers)["main"])]
    shapes = {str(p.name): tuple(int(d) for d in p.ty.shape) for p in found.mod["main"].params}
    values = values_of(found.nodes, shapes)
    integer = with_sums(values, {site.site: site.precision is not None for site in found.plan.sites})
    forms = [forms_of(value, integer) for value in values]
    counted = sum(each.quantized for each in forms), sum(sum(each.dequantized) for each in forms)
    assert counted == (calls.count("quantize"), calls.count("dequantize"))


def test_a_conversion_costs_once_however_many_read_its_result():
    readers = (Reading(("a", "b", "c"), to_float=0.5), Reading(("d", OUTSIDE), to_float=0.25))
    values = (Value("x", ("w",), readers, from_float=1.0),)
    four = dict.fromkeys("abcd", True)
    assert conversions_ms(values, four | {"w": False}) == 1.25  # the model's output dequantizes its view
    assert conversions_ms(values, four | {"w": True}) == 0.25
    assert conversions_ms(values, {"w": True}) == 0.75
    assert conversions_ms(values, {}) == 0.0
    total = Value("sum", ("w", "v"), (Reading(("a",)),), is_sum=True, from_float=2.0)
    assert conversions_ms((total,), {"a": True}) == 2.0
    assert conversions_ms((total,), {"a": True, "v": True}) == 0.0
