"""What a model file takes, before anything imports it into TVM: needed to shape photos into inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmq.environment import require_compiler
from tvmq.errors import UsageError
from tvmq.spec import TensorSpec


def open_model(path: Path) -> tuple[Any, tuple[TensorSpec, ...]]:
    """Return what tvmq.compile takes for this file, and the inputs; a free batch becomes 1.

    Raises UsageError for a file that is no model, and for a free dimension that is not the batch.
    """
    require_compiler()
    if path.suffix == ".onnx":
        return path, _onnx_inputs(path)
    if path.suffix == ".pt2":
        return _exported_program(path)
    from tvmq.frontend import import_model

    import_model(path)  # knows what to say about other suffixes
    raise UsageError(f"{path}: wanted .onnx or .pt2; export the model to one of them")


def _onnx_inputs(path: Path) -> tuple[TensorSpec, ...]:
    from onnx import helper

    from tvmq.frontend.onnx_file import load_model

    graph = load_model(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    specs = []
    for value in graph.input:
        if value.name not in weights:
            tensor = value.type.tensor_type
            sizes = [int(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            specs.append(TensorSpec(value.name, _static(path, value.name, sizes), dtype))
    return tuple(specs)


def _exported_program(path: Path) -> tuple[Any, tuple[TensorSpec, ...]]:
    from tvmq.frontend.torch import load_program

    program = load_program(path)
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = values[name]
        sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
        specs.append(TensorSpec(name, _static(path, name, sizes), str(value.dtype).removeprefix("torch.")))
    return program, tuple(specs)


def _static(path: Path, name: str, sizes: list[int | str]) -> tuple[int, ...]:
    shape = [1 if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(sizes)]
    free = [(axis, size) for axis, size in enumerate(shape) if isinstance(size, str)]
    if free:
        axis, size = free[0]
        raise UsageError(
            f"{path}: input {name!r} leaves dimension {axis} ({size}) open, tvmq compiles one shape; "
            "export the model again with that dimension fixed"
        )
    return tuple(int(size) for size in shape)
