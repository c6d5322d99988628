"""Read an ONNX file that may come from anywhere: whole, sound, and without reaching outside its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tvmq.errors import UsageError


def load_model(path: Path) -> onnx.ModelProto:
    """Return the model in path with its external data; UsageError for a file that is not one."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file, wanted an ONNX model; check the path")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UsageError(f"{path}: is no ONNX model or is truncated; export or copy it again") from error
    if not model.ir_version or not model.graph.node:
        raise UsageError(f"{path}: holds no ONNX graph, wanted an ONNX model; export or copy it again")
    for tensor in tensors(model.graph):
        if _is_external(tensor):
            _check_external(tensor, path)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def check_complete(model: onnx.ModelProto) -> None:
    """Refuse a model in memory whose weights were left in another file."""
    for tensor in tensors(model.graph):
        if _is_external(tensor):
            raise UsageError(
                f"{tensor.name}: its values are in an external file that a ModelProto does not name fully, "
                "wanted a model with its weights; give the path of the .onnx file"
            )


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in graph: initialisers and attributes, also of nested graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for nested in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from tensors(nested)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse external data that lies outside the model's folder, is missing or is too short."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    data = (folder / location).resolve()
    if not location or not data.is_relative_to(folder):
        raise UsageError(
            f"{path}: weight {tensor.name!r} points to {location!r}, outside the model's folder; "
            "move its data beside the model and export again"
        )
    if not data.is_file():
        raise UsageError(f"{path}: weight {tensor.name!r} is in {location!r}, which is missing; copy it too")
    end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    if data.stat().st_size < end:
        raise UsageError(
            f"{path}: {location!r} has {data.stat().st_size} bytes, weight {tensor.name!r} ends at byte "
            f"{end}; the copy is truncated, copy it again"
        )
