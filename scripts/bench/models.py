"""The models of the benchmark, and their export: python models.py NAME FOLDER

They are built with seeded random weights and exported to ONNX once, the same file for all engines. Speed does
not depend on what the weights are, so nothing is downloaded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx_graph import computed, fold

SEED = 0
TOKENS, WORDS = 128, 30522
CALIBRATION_BATCHES = 8
SPREAD = 0.02  # standard deviation of what is added to biases and norms
OPSET = 17
Arrays = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Model:
    """One model of the table: how to build it in torch, and what it takes."""

    title: str
    build: Callable[[], Any]
    samples: Callable[[int], Arrays]  # n samples: {input: [n, ...]}
    transformer: bool  # quantizers that have settings for transformers use them
    batch: int = 1  # samples of one run


def export(model: Model, folder: Path) -> None:
    """Write model.onnx, input.npz, calibration.npz and about.json."""
    import onnx
    import torch

    import tvmq

    tvmq.mend_torchvision()  # timm and transformers import it
    torch.manual_seed(SEED)
    module = model.build().eval()
    blur(module)
    samples = model.samples(CALIBRATION_BATCHES * model.batch + model.batch)
    first = {name: array[: model.batch] for name, array in samples.items()}
    np.savez(folder / "input.npz", **first)  # type: ignore[arg-type]
    rest = {name: array[model.batch :] for name, array in samples.items()}
    np.savez(folder / "calibration.npz", **rest)  # type: ignore[arg-type]
    path = folder / "model.onnx"
    arguments = tuple(torch.from_numpy(array) for array in first.values())
    torch.onnx.export(
        module,
        arguments,
        str(path),
        input_names=list(first),
        opset_version=OPSET,
        dynamo=False,
        verbose=False,
    )
    exported = fold(onnx.load(path), first)
    onnx.save(exported, path)
    about = {"macs": count_macs(exported, first), "transformer": model.transformer}
    (folder / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def blur(module: Any) -> None:
    """Make biases and norms uneven, as training does: an engine may leave out a sum with 0."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter += SPREAD * torch.randn_like(parameter)


def count_macs(model: Any, inputs: Arrays) -> int:
    """Return the multiply-accumulates of all convolutions and matrix products, those of attention included.

    Shapes are those of one run: what the exporter writes down is not enough to infer them all.
    """
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes |= {name: array.shape for name, array in inputs.items()}
    wanted = {name for node in nodes for name in (*node.input[:2], *node.output)} - set(shapes)
    shapes |= {name: array.shape for name, array in computed(model, wanted, inputs).items()}
    return sum(node_macs(node, shapes) for node in nodes)


def node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the multiply-accumulates of one Conv, Gemm or MatMul."""
    outputs = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":  # weights [O, I / groups, ...]
        return outputs * math.prod(shapes[node.input[1]][1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return outputs * shapes[node.input[0]][-2 if transposed else -1]


def timm_model(name: str, **options: Any) -> Callable[[], Any]:
    """Return a builder of one of timm's models."""

    def build() -> Any:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def small_vit() -> Any:
    """Build a ViT with two blocks, for a check of the whole path in seconds."""
    from timm.models import VisionTransformer

    return VisionTransformer(img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=2, num_classes=10)


def bert(**sizes: int) -> Callable[[], Any]:
    """Return a builder of a BERT of these sizes, with pooler."""

    def build() -> Any:
        import torch
        from transformers import BertConfig, BertModel

        class Encoder(torch.nn.Module):
            """A BERT whose inputs are positional, as the exporter gives them."""

            def __init__(self) -> None:
                super().__init__()
                self.bert = BertModel(BertConfig(vocab_size=WORDS, attn_implementation="eager", **sizes))

            def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
                """Return the tokens [1, TOKENS, width] and the pooled first one [1, width]."""
                # The mask that transformers makes, without the indexing that it leaves in the graph.
                lowest = torch.finfo(torch.float32).min
                mask = torch.where(attention_mask[:, None, None, :] > 0, 0.0, lowest)
                found = self.bert(input_ids=input_ids, attention_mask=mask)
                return found.last_hidden_state, found.pooler_output

        return Encoder()

    return build


def pictures(side: int) -> Callable[[int], Arrays]:
    """Return a maker of n pictures of noise, normalized as photos are."""

    def make(n: int) -> Arrays:
        random = np.random.default_rng(SEED)
        return {"pixels": random.standard_normal((n, 3, side, side), np.float32)}

    return make


def texts(n: int) -> Arrays:
    """Return n texts of random words; every second one is shorter than TOKENS, its rest masked."""
    random = np.random.default_rng(SEED)
    mask = np.ones((n, TOKENS), np.int64)
    mask[::2, TOKENS - TOKENS // 8 :] = 0
    return {"input_ids": random.integers(0, WORDS, (n, TOKENS), np.int64), "attention_mask": mask}


def vision(title: str, name: str, *, transformer: bool, batch: int = 1, **options: Any) -> Model:
    """Return one of timm's models."""
    if batch > 1:
        title = f"{title}, batch {batch}"
    return Model(title, timm_model(name, **options), pictures(224), transformer, batch)


MODELS = {
    "deit_tiny": vision("DeiT-Ti", "deit_tiny_patch16_224", transformer=True),
    "deit_small": vision("DeiT-S", "deit_small_patch16_224", transformer=True),
    "deit_base": vision("DeiT-B", "deit_base_patch16_224", transformer=True),
    "swin_tiny": vision("Swin-T", "swin_tiny_patch4_window7_224", transformer=True),
    "resnet50": vision("ResNet-50", "resnet50", transformer=False, zero_init_last=False),
    "mobilenetv2_100": vision("MobileNetV2", "mobilenetv2_100", transformer=False),
    "bert_base": Model("BERT base, 128 tokens", bert(), texts, True),
    "minilm_l6": Model(
        "MiniLM-L6, 128 tokens",
        bert(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
        texts,
        True,
    ),
    "deit_small_8": vision("DeiT-S", "deit_small_patch16_224", transformer=True, batch=8),
    "resnet50_8": vision("ResNet-50", "resnet50", transformer=False, batch=8, zero_init_last=False),
    "mobilenetv2_100_8": vision("MobileNetV2", "mobilenetv2_100", transformer=False, batch=8),
}
SMOKE = {"small_vit": Model("ViT of two blocks", small_vit, pictures(64), True)}


def main(arguments: Sequence[str]) -> None:
    """Export one model."""
    name, folder = arguments
    export((MODELS | SMOKE)[name], Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
