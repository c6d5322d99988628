"""Import a torch or ONNX model as a Relax module at level float.

Each importer lives in a module of its own and is loaded only for its kind of model, so that an ONNX model
needs no torch here and a torch model no onnx.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmq.errors import UsageError

if TYPE_CHECKING:
    from tvm import IRModule

ACCEPTED = "torch.nn.Module, torch.export.ExportedProgram, onnx.ModelProto, or a path to .onnx or .pt2"


def import_model(model: Any, example_inputs: Any = None) -> IRModule:
    """Return model as one function `main` whose weights are constants and whose parameters are its inputs.

    example_inputs: a tuple or list of arrays or tensors, or a dict of them by input name. A torch module
    needs them; for the other kinds they fix the batch, else 1, and what else the model leaves open.
    A variable that holds a site's result is named after the module (`blocks.0.attn.qkv`), see naming.py.
    A single output is returned as a tensor, several as a tuple.
    """
    kind = _kind(model)
    if kind == "onnx":
        from tvmq.frontend.onnx import import_onnx

        return import_onnx(model, example_inputs)
    from tvmq.frontend.torch import import_torch

    return import_torch(model, example_inputs)


def _kind(model: Any) -> str:
    """Return 'torch' or 'onnx', judged by class and suffix so that nothing heavy is imported."""
    if isinstance(model, (str, os.PathLike)):
        return _kind_of_file(Path(model))
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package == "torch" and base.__name__ in ("Module", "ExportedProgram"):
            return "torch"
        if package == "onnx" and base.__name__ == "ModelProto":
            return "onnx"
    raise UsageError(f"model: is a {type(model).__name__}, wanted {ACCEPTED}; give one of these")


def _kind_of_file(path: Path) -> str:
    kinds = {".onnx": "onnx", ".pt2": "torch"}
    if path.suffix in kinds:
        return kinds[path.suffix]
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise UsageError(
            f"{path}: holds weights without a program, wanted .onnx or .pt2; "
            "load it in Python and give the torch module, or save it with torch.export.save"
        )
    raise UsageError(
        f"{path}: has suffix {path.suffix!r}, wanted .onnx or .pt2; export the model to one of them"
    )
