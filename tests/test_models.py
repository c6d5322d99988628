"""Models of every kind: compiled, verified, honest about what is integer, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tvmq
from tvmq.artifact import graph_text
from tvmq.build import integer_module
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.verify_level import verify
from tvmq.spec import COPY

PRODUCTS = {"linear", "conv2d", "depthwise", "conv2d_transpose", "attention"}


def compiled(model: nn.Module, *shape: int) -> tuple[tvmq.CompiledModel, torch.Tensor]:
    """Compile a model of one image; return it with that image."""
    torch.manual_seed(1)
    x = torch.randn(*shape)
    return tvmq.compile(model, example_inputs=(x,), calibration=[x, torch.randn(*shape)], preset="fast"), x


def check_integer(model: tvmq.CompiledModel, *inputs: torch.Tensor) -> None:
    """Every site that coverage calls integer must be a kernel of the program, except where it joined one.

    And nothing else may be float in the graph that the artifact carries.
    """
    traced = {name.split(".phase")[0].removesuffix(COPY) for name in model.trace(*inputs)}
    claimed = {row.site for row in model.coverage.rows if row.integer and row.kind in PRODUCTS}
    assert claimed <= traced
    graph = integer_module(graph_text(model._built), model._built.constants)
    verify(graph, "integer", float_sites=[row.site for row in model.coverage.rows if not row.integer])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


class PositionalConvolution(nn.Module):
    """x + depthwise(x), then a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.depthwise(x))


SMALL = {
    "relu6 and depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1),
    ),
    "depthwise and residual": PositionalConvolution,
    "depthwise last": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)),
    "groups, dilation and every pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 64, 3, padding=2, dilation=2, groups=4),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(64, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ),
    "transposed last": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, stride=2)),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_convolutional_model_is_wholly_integer(name):
    torch.manual_seed(0)
    module = SMALL[name]().eval()
    model, x = compiled(module, 1, 3, 17, 16)
    x = unaligned(x)
    assert all(row.integer for row in model.coverage.rows), model.coverage.rows
    check_integer(model, x)
    assert model.verify((x,)).require() is None
    with torch.no_grad():
        assert cosine(model(x), module(x)) > 0.998


def timm_model(name: str, **options: object) -> Callable[[], nn.Module]:
    def create() -> nn.Module:
        tvmq.mend_torchvision()
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return create


def small_swin(size: int) -> nn.Module:
    """Two stages of two blocks, of windows of 7 x 7 patches."""
    shape = {"img_size": size, "depths": (2, 2), "embed_dim": 32, "num_heads": (1, 2), "num_classes": 10}
    return timm_model("swin_tiny_patch4_window7_224", **shape)()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*scales would change:tvmq.CalibrationWarning")  # the samples are few
@pytest.mark.parametrize(("size", "batch", "moves"), [(56, 1, 0), (56, 2, 0), (60, 1, 8)])
def test_windows_are_read_where_they_lie_unless_they_are_padded(size: int, batch: int, moves: int) -> None:
    torch.manual_seed(0)
    module = small_swin(size).eval()
    model, x = compiled(module, batch, 3, size, size)
    assert model.verify(x).mismatches == ()
    assert all(row.integer for row in model.coverage.rows)
    graph = integer_module(graph_text(model._built), model._built.constants)
    ops = [op_name(b.value) for b in bindings(graph["main"])]
    assert ops.count("permute_dims") <= 1  # the image's patches
    assert ops.count("take") == moves
    with torch.no_grad():
        assert cosine(model(x), module(x)) > 0.99


def bert() -> nn.Module:
    """Two layers; a mask is an input, as in a real one."""
    tvmq.mend_torchvision()
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 300}
    return BertModel(BertConfig(num_hidden_layers=2, **sizes))


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """Return x where vectors do not start, as most arrays of NumPy lie."""
    copy = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return copy.copy_(x)


def image(batch: int = 1) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, 224, 224),)


def sentence() -> tuple[torch.Tensor, ...]:
    mask = torch.ones(1, 32, dtype=torch.int64)
    mask[:, 24:] = 0
    return torch.randint(0, 300, (1, 32)), mask


# model, inputs, share of multiply-accumulates that are integer, kinds that may stay float, cosine
MODELS = {
    "deit_tiny": (timm_model("deit_tiny_patch16_224"), image, 1.0, set(), 0.998),
    "deit_tiny, batch 4": (timm_model("deit_tiny_patch16_224"), lambda: image(4), 1.0, set(), 0.998),
    "resnet18": (timm_model("resnet18"), image, 1.0, set(), 0.999),
    "mobilenetv2": (timm_model("mobilenetv2_100"), image, 1.0, set(), 0.995),
    "swin_tiny": (
        timm_model("swin_tiny_patch4_window7_224", depths=(2, 2, 2, 2)),  # of 2, 2, 6, 2
        image,
        1.0,
        set(),
        0.998,
    ),
    "bert": (bert, sentence, 1.0, set(), 0.999),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*scales would change:tvmq.CalibrationWarning")  # the samples are few
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_verified_saved_and_honest_about_what_is_integer(name: str, tmp_path: Path) -> None:
    create, inputs, share, float_kinds, closest = MODELS[name]
    torch.manual_seed(0)
    module = create().eval()
    x, calibration = tuple(map(unaligned, inputs())), [inputs() for _ in range(2)]
    model = tvmq.compile(module, example_inputs=x, calibration=calibration, preset="fast")

    found = model.verify(x)
    assert found.mismatches == ()
    assert found.sites > 15

    left = [row for row in model.coverage.rows if not row.integer]
    assert {row.kind for row in left} <= float_kinds
    assert all(row.reason for row in left)
    assert model.coverage.macs_integer_fraction >= share
    check_integer(model, *x)

    outputs = as_tuple(model(*x))
    with torch.no_grad():
        wanted = as_tuple(module(*x))
    assert min(map(cosine, outputs, wanted)) > closest

    model.save(tmp_path / "model.tvmq")
    loaded = tvmq.load(tmp_path / "model.tvmq")
    assert loaded.verify().ok
    assert all(map(torch.equal, outputs, as_tuple(loaded(*x))))


def as_tuple(result: object) -> tuple[torch.Tensor, ...]:
    if isinstance(result, dict):
        return tuple(result.values())
    return result if isinstance(result, tuple) else (result,)
