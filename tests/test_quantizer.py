import pytest
import torch

import tvmq
from tests import tiny_transformer
from tvmq.errors import UsageError
from tvmq.quantizer import check_quantization, first_samples, patterns, planned, quantized
from tvmq.spec import W8A8, Precision


def test_sites_may_have_bits_of_their_own_up_to_the_numbers():
    bits = {"*": Precision(4, 8), "blocks.1.fc?": Precision(2, 8), "blocks.1.norm2": None}
    chosen = quantized(
        tiny_transformer.transformer(),
        tiny_transformer.example(),
        tiny_transformer.inputs(),
        bits=bits,
        preset="fast",
        reasons={"blocks.1.norm2": "slower in integers"},
    )
    found = {site: weight.bits for site, weight in chosen.numbers.weights.items()}
    assert found["blocks.0.fc1"] == found["blocks.1.proj"] == 4
    assert found["blocks.1.fc1"] == found["blocks.1.fc2"] == 2
    assert found["head"] == found["blocks.0.qkv.q"] == 8
    rows = {row.site: row for row in chosen.coverage.rows}
    assert not rows["blocks.1.norm2"].integer
    assert rows["blocks.1.norm2"].reason == "slower in integers"


def test_planning_alone_needs_no_data():
    plan, formats = planned(tiny_transformer.canonical(), bits={"head": None})
    assert {site.precision for site in plan.sites} == {W8A8, None}
    assert "head" not in formats.integer


def test_options_are_checked_and_patterns_may_be_one():
    assert check_quantization("w4a8", "pot", "mse", "fast") == Precision(4, 8)
    with pytest.raises(UsageError, match="requantize='round' is unknown"):
        check_quantization(8, "round", "mse", "fast")
    assert (patterns("head"), patterns(["a", "b"])) == (("head",), ("a", "b"))
    batches = [(tiny_transformer.example()[0],)] * 5
    assert len(list(first_samples(batches, 3))) == 3


class PatchMerging(torch.nn.Module):
    """A norm whose channels lie far from zero, before a linear without a bias, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = torch.nn.LayerNorm(32), torch.nn.Linear(32, 16, bias=False)
        self.norm.bias.data += torch.linspace(-6, 6, 32)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.gelu(self.reduction(self.norm(x))))


def test_the_input_of_a_linear_without_a_bias_is_shifted():
    samples = [torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(i)) for i in range(16)]
    found = tvmq.compile(PatchMerging().eval(), calibration=samples, example_inputs=samples[:1], strict=True)
    assert found.verify(samples[0].numpy()).ok
    norm = next(scale for scale in found.manifest.description.scales if scale.tensor == "norm")
    assert 64 < norm.zero_point < 192
    assert norm.smallest < 0.05
