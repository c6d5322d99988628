"""The pretrained models of the accuracy table as torch modules that give one vector of features per input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import CACHE, model_file
from torch import Tensor, nn

VIT_SIDE = 112  # pixels: 8 x 8 patches
PATCHES, TRAINED_PATCHES = VIT_SIDE // 14, 37  # along one side, here and in the table of positions
WIDTH = 384


class ClassAndPatches(nn.Module):
    """A ViT's class token beside the mean of its patches."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vit.forward_features(images)
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


class MeanToken(nn.Module):
    """A BERT's mean over the tokens that the mask shows."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # The mask that transformers makes, without the indexing that it leaves in the graph.
        lowest = torch.finfo(torch.float32).min
        seen = torch.where(attention_mask[:, None, None, :] > 0, 0.0, lowest)
        tokens = self.bert(input_ids=input_ids, attention_mask=seen).last_hidden_state
        shown = attention_mask[:, :, None].float()
        return (tokens * shown).sum(1) / shown.sum(1)


def vit_s(cache: Path = CACHE) -> nn.Module:
    """Return ViT-S/14 at 112 pixels, of the package that finds what is salient in a photo."""
    import timm

    weights = onnx_weights(model_file("vit_s", cache))
    vit = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=False, img_size=VIT_SIDE, num_classes=0, dynamic_img_size=False
    )
    vit.load_state_dict({name: torch.from_numpy(array) for name, array in renamed(weights).items()})
    return ClassAndPatches(vit).eval()


def onnx_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return an ONNX model's constants by name; a product's anonymous one by the name of its node."""
    import onnx

    graph = onnx.load(path).graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("MatMul", "Reshape", "Concat"):
            for name in node.input:
                if name.startswith("onnx::"):
                    found[node.name] = found[name]
    return {name: np.array(array) for name, array in found.items()}


def renamed(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of the package's ViT by timm's names."""
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": weights[f"{embeddings}cls_token"],
        "pos_embed": positions(
            weights["/backbone/embeddings/Concat_6"], weights["/backbone/embeddings/Reshape_1"]
        ),
        "norm.weight": weights["backbone.layernorm.weight"],
        "norm.bias": weights["backbone.layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = weights[f"{embeddings}patch_embeddings.projection.{kind}"]
    for i in range(12):
        state |= {f"blocks.{i}.{name}": array for name, array in block(weights, i).items()}
    return state


def block(weights: dict[str, np.ndarray[Any, Any]], i: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of one block by timm's names."""
    layer, path = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}/"
    inner = [f"attention.attention.{name}" for name in ("query", "key", "value")]

    def matrix(name: str) -> np.ndarray[Any, Any]:
        return weights[f"{path}{name.replace('.', '/')}/MatMul"].T

    state = {
        "attn.qkv.weight": np.concatenate([matrix(name) for name in inner]),
        "attn.qkv.bias": np.concatenate([weights[f"{layer}{name}.bias"] for name in inner]),
        "ls1.gamma": weights[f"{layer}layer_scale1.lambda1"],
        "ls2.gamma": weights[f"{layer}layer_scale2.lambda1"],
    }
    for name, theirs in (
        ("attn.proj", "attention.output.dense"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    ):
        state |= {f"{name}.weight": matrix(theirs), f"{name}.bias": weights[f"{layer}{theirs}.bias"]}
    for name in ("norm1", "norm2"):
        state |= {f"{name}.{kind}": weights[f"{layer}{name}.{kind}"] for kind in ("weight", "bias")}
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def positions(first: np.ndarray[Any, Any], table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the class token's position and the patches', resized from the trained 37 x 37."""
    grid = torch.from_numpy(table).reshape(1, TRAINED_PATCHES, TRAINED_PATCHES, WIDTH).permute(0, 3, 1, 2)
    fitted = nn.functional.interpolate(grid, (PATCHES, PATCHES), mode="bicubic", align_corners=False)
    return np.concatenate([first, fitted.flatten(2).transpose(1, 2).numpy()], 1)


def lite0(cache: Path = CACHE) -> nn.Module:
    """Return EfficientNet-Lite0 up to its pooled features [N, 1280]."""
    import timm

    theirs = torch.load(model_file("lite0", cache), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Both list the same layers in the same order, under other names.
    ours = net.state_dict()
    net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    net.classifier = nn.Identity()
    return net.eval()


def minilm(cache: Path = CACHE) -> nn.Module:
    """Return MiniLM's sentence embedding [N, 384], before its normalization to length 1."""
    from transformers import AutoModel

    folder = model_file("minilm", cache).parent
    bert = AutoModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
    return MeanToken(bert).eval()


def minilm_tokens(texts: list[str], length: int, cache: Path = CACHE) -> dict[str, np.ndarray[Any, Any]]:
    """Return the model's inputs, int64 [N, length] each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_file("minilm", cache).parent)
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
