"""Whole models reach the promised form and stay the same function."""

from collections import Counter

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tests.passes.golden import assert_untouched
from tvmq import reference
from tvmq.frontend import import_model
from tvmq.frontend.torch import mend_torchvision
from tvmq.passes.canonicalize import canonicalize
from tvmq.passes.rebuild import bindings, op_name
from tvmq.passes.verify_level import verify

TRANSFORMER = ("matmul", "nn.attention", "nn.layer_norm", "nn.gelu")


def operators(mod):
    return Counter(op_name(b.value) for b in bindings(mod["main"]))


def names(mod):
    return [str(b.var.name) for b in bindings(mod["main"])]


def canonical(mod, x):
    """Return mod canonicalized, after checking level, function and idempotence."""
    after = canonicalize(mod)
    verify(after, "canonical")
    tvm.relax.analysis.well_formed(after)
    assert_untouched(after, canonicalize)
    assert names(canonicalize(after)) == names(after)
    for a, b in zip(reference.run(mod, [x]), reference.run(after, [x]), strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())
    return after


class Block(nn.Module):
    """A transformer block with LayerScale, its attention written out."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.gamma * self.proj(y.transpose(1, 2).reshape(b, t, c))


def test_a_transformer_block():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    after = canonical(import_model(Block().eval(), (x,)), x)
    assert names(after) == [
        "norm", "qkv.q", "qkv.q.bias", "qkv.k", "qkv.k.bias", "qkv.v", "qkv.v.bias",
        "reshape.0", "reshape.1", "reshape.2", "attention.0", "reshape.3", "proj", "proj.bias", "add.4",
    ]  # fmt: skip
    assert operators(after)["nn.attention"] == 1


@pytest.mark.slow
def test_deit_tiny():
    mended = mend_torchvision()  # noqa: F841  (the schemas live as long as this does)
    import timm

    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    after = canonical(import_model(model, (x,)), x)
    count = operators(after)
    assert (count["matmul"], count["nn.attention"], count["nn.layer_norm"], count["nn.gelu"]) == (
        73,
        12,
        25,
        12,
    )
    assert (count["add"], count["reshape"], count["permute_dims"]) == (99, 49, 1)
    assert sum(count.values()) == len(names(after)) == 274
    assert {"blocks.0.attn", "blocks.11.attn.qkv.v", "blocks.3.mlp.fc1.bias", "head"} <= set(names(after))


@pytest.mark.slow
def test_vit_s_from_onnx(vit_s_path):
    import onnxruntime

    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    after = canonical(import_model(vit_s_path), x)
    count = operators(after)
    assert (count["matmul"], count["nn.attention"], count["nn.layer_norm"], count["nn.gelu"]) == (
        72,
        12,
        25,
        12,
    )
    assert (count["nn.conv2d"], count["nn.conv2d_transpose"], count["permute_dims"]) == (2, 3, 2)
    assert {"backbone.encoder.layer.0.attention.attention", "decoder.upconv1.bias"} <= set(names(after))
    session = onnxruntime.InferenceSession(str(vit_s_path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(reference.run(after, [x])[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("swin_tiny_patch4_window7_224", {"nn.attention_bias": 12, "matmul": 76, "nn.layer_norm": 29}),
        ("resnet50", {"nn.conv2d": 53, "nn.relu": 49, "matmul": 1}),
        ("mobilenetv2_100", {"nn.conv2d": 52, "clip": 35, "matmul": 1}),
    ],
)
def test_other_families(name, wanted):
    mended = mend_torchvision()  # noqa: F841
    import timm

    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    after = canonical(import_model(timm.create_model(name, pretrained=False).eval(), (x,)), x)
    count = operators(after)
    assert {op: count[op] for op in wanted} == wanted
    assert count["nn.batch_norm"] == count["nn.softmax"] == 0
