"""What a model file takes, before anything imports it into TVM: needed to shape photos into inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmq.environment import require_compiler
from tvmq.errors import UsageError
from tvmq.spec import Array, TensorSpec

Sizes = tuple[int | str, ...]  # of an input's dimensions; an open one is a name


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model from a file, its inputs of fixed shape."""

    model: Any  # what tvmq.compile takes
    inputs: tuple[TensorSpec, ...]
    batch: int | None  # what an open batch became; None: the file says it

    def examples(self) -> dict[str, Array] | None:
        """Return inputs that tell tvmq.compile the batch, where the file leaves it open."""
        import numpy as np

        if self.batch is None:
            return None
        return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.inputs}


def open_model(path: Path, batch: int | None = None) -> ModelFile:
    """Return the model at path; a batch that it leaves open becomes the one given, else 1.

    Raises UsageError for a file that is no model, for a free dimension that is not the batch, and for a
    batch other than the one that the model fixes.
    """
    require_compiler()
    if path.suffix == ".onnx":
        return _fixed(path, path, _onnx_inputs(path), batch)
    if path.suffix == ".pt2":
        program, inputs = _exported_program(path)
        return _fixed(path, program, inputs, batch)
    from tvmq.frontend import import_model

    import_model(path)  # knows what to say about other suffixes
    raise UsageError(f"{path}: wanted .onnx or .pt2; export the model to one of them")


def _fixed(path: Path, model: Any, inputs: list[tuple[str, Sizes, str]], batch: int | None) -> ModelFile:
    specs = tuple(TensorSpec(name, _static(path, name, sizes, batch), dtype) for name, sizes, dtype in inputs)
    is_open = any(isinstance(size, str) for _, sizes, _ in inputs for size in sizes[:1])
    if batch is not None and any(spec.shape[:1] != (batch,) for spec in specs):
        raise UsageError(
            f"{path}: takes {', '.join(map(str, specs))}, batches of {batch} are wanted; export it again "
            "with its first dimension open, or leave --batch out"
        )
    return ModelFile(model, specs, (batch or 1) if is_open else None)


def _onnx_inputs(path: Path) -> list[tuple[str, Sizes, str]]:
    from onnx import helper

    from tvmq.frontend.onnx_file import load_model

    graph = load_model(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = []
    for value in graph.input:
        if value.name not in weights:
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            sizes = tuple(int(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in dims)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            inputs.append((value.name, sizes, dtype))
    return inputs


def _exported_program(path: Path) -> tuple[Any, list[tuple[str, Sizes, str]]]:
    from tvmq.frontend.torch import load_program

    program = load_program(path)
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    inputs = []
    for name in program.graph_signature.user_inputs:
        value = values[name]
        sizes = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        inputs.append((name, sizes, str(value.dtype).removeprefix("torch.")))
    return program, inputs


def _static(path: Path, name: str, sizes: Sizes, batch: int | None) -> tuple[int, ...]:
    shape = [(batch or 1) if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(sizes)]
    free = [(axis, size) for axis, size in enumerate(shape) if isinstance(size, str)]
    if free:
        axis, size = free[0]
        raise UsageError(
            f"{path}: input {name!r} leaves dimension {axis} ({size}) open, tvmq compiles one shape; "
            "export the model again with that dimension fixed"
        )
    return tuple(int(size) for size in shape)
