"""Import an ONNX model."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import tvm
from onnx import numpy_helper
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.frontend.fold_shapes import fold_shapes
from tvmq.frontend.naming import name_and_bind
from tvmq.frontend.onnx_file import check_complete, load_model
from tvmq.frontend.onnx_operators import OPERATORS, better_operators
from tvmq.frontend.weights import check_finite, check_precision

STANDARD_DOMAINS = ("", "ai.onnx")
CONTRIB_DOMAIN = "com.microsoft"  # ONNX Runtime's operators; TVM converts some of them
FREE = None  # a dimension without a size
Dimensions = list[int | None]

WEIGHT_INPUT = {"Gather": 0}  # every other operator has its weight second


def import_onnx(model: Any, example_inputs: Any) -> tvm.IRModule:
    """Return model, a ModelProto or a path, at level float; see import_model for example_inputs."""
    if isinstance(model, (str, os.PathLike)):
        where, model = str(model), load_model(Path(model))
    else:
        where = model.graph.name or "model"
        check_complete(model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _check_operators(model)
    _check_connected(model.graph, where)
    _check_weights(model.graph)
    shapes = _fixed_shapes(model.graph, example_inputs)
    mod = fold_shapes(_translate(_without_initialiser_inputs(model), shapes))
    names = {weight.removeprefix("onnx::"): name for weight, name in _full_names(model.graph).items()}
    return name_and_bind(mod, names)


def _check_operators(model: onnx.ModelProto) -> None:
    """Raise UnsupportedModelError that lists every operator TVM has no conversion for, with a node's name."""
    known = onnx_frontend._get_convert_map().keys() | OPERATORS.keys() | {"Constant"}
    missing: dict[str, str] = {}
    for node in model.graph.node:
        standard = node.domain in (*STANDARD_DOMAINS, CONTRIB_DOMAIN)
        if not standard or node.op_type not in known:
            name = node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"
            missing.setdefault(name, node.name or "a node without a name")
    if not missing:
        return
    listed = ", ".join(f"{name} (in {node})" for name, node in missing.items())
    raise UnsupportedModelError(
        f"model: TVM cannot import {listed}; export the model with other operators there, or give the torch "
        "module itself (`ignored` does not help: it keeps an imported operator in float)"
    )


def _check_connected(graph: onnx.GraphProto, where: str) -> None:
    """Refuse a graph that reads a value nothing produces, as a file cut at a field's end does.

    onnx.checker would do more, but it also refuses inputs without a rank, which example_inputs can give.
    """
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        for name in node.input:
            if name not in known:
                raise UsageError(
                    f"{where}: node {node.name or node.op_type!r} reads {name!r}, which nothing produces; "
                    "the file may be truncated, export or copy it again"
                )
        known.update(node.output)
    lost = [value.name for value in graph.output if value.name not in known]
    if lost:
        raise UsageError(f"{where}: nothing produces the outputs {lost}; export the model again")


def _check_weights(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if len(tensor.dims) > 1:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            check_precision(tensor.name, dtype, "export the model in float32")
    floats = (t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    check_finite((t.name, numpy_helper.to_array(t)) for t in floats)


def _fixed_shapes(graph: onnx.GraphProto, example_inputs: Any) -> dict[str, list[int]]:
    """Return input -> shape with every free dimension fixed; UsageError where that is not possible."""
    weights = {tensor.name for tensor in graph.initializer}
    declared = {value.name: _dimensions(value) for value in graph.input if value.name not in weights}
    examples = _example_shapes(example_inputs, list(declared))
    batch = next((shape[0] for shape in examples.values() if shape), 1)
    return {name: _fixed(name, shape, examples.get(name), batch) for name, shape in declared.items()}


def _dimensions(value: onnx.ValueInfoProto) -> Dimensions | None:
    """Return the declared dimensions, None for a free one; None when even the rank is open."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [int(d.dim_value) if d.dim_value > 0 else FREE for d in tensor.shape.dim]


def _example_shapes(example_inputs: Any, inputs: list[str]) -> dict[str, tuple[int, ...]]:
    if example_inputs is None:
        return {}
    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        several = example_inputs if isinstance(example_inputs, (tuple, list)) else [example_inputs]
        given = dict(zip(inputs, several, strict=False)) if len(several) == len(inputs) else {"": several}
    if not given.keys() <= set(inputs):
        raise UsageError(
            f"example_inputs: do not fit the model, whose inputs are {inputs}; give one array each"
        )
    return {name: tuple(int(size) for size in value.shape) for name, value in given.items()}


def _fixed(name: str, declared: Dimensions | None, example: tuple[int, ...] | None, batch: int) -> list[int]:
    if example is not None:
        fits = declared is None or (
            len(declared) == len(example)
            and all(d in (FREE, e) for d, e in zip(declared, example, strict=True))
        )
        if not fits:
            raise UsageError(
                f"example_inputs: {name!r} is {list(example)}, the model takes {declared}; "
                "give that shape, any size for None"
            )
        return list(example)
    if declared is None:
        raise UsageError(f"input {name!r}: its rank is open, tvmq compiles one shape; give example_inputs")
    shape = [batch if axis == 0 and size is FREE else size for axis, size in enumerate(declared)]
    fixed = [size for size in shape if size is not None]
    if len(fixed) < len(shape):
        raise UsageError(
            f"input {name!r}: dimension {shape.index(FREE)} of {declared} is free, tvmq compiles one shape; "
            "give example_inputs, or fix that dimension when you export"
        )
    return fixed


def _without_initialiser_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return model with weights no longer listed as inputs, as files before IR version 4 do."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) == len(model.graph.input):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def _translate(model: onnx.ModelProto, shapes: dict[str, list[int]]) -> tvm.IRModule:
    try:
        with _quiet(), better_operators():
            return from_onnx(model, shapes, keep_params_in_input=True, sanitize_input_names=False)
    except Exception as error:
        raise UnsupportedModelError(
            f"model: TVM's ONNX importer stopped at: {_first_line(error)}; "
            "export that part of the model with other operators, or give the torch module itself"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the importer prints before it raises, and its warnings on what was checked here already."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"tvm\.relax\.frontend\.onnx")
        yield


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _full_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Return initialiser -> full name of the parameter, recovered where the exporter dropped it.

    Exporters transpose linear weights and call the result `onnx::MatMul_2169`. Its module is the one of the
    bias added next, else the folder of the node's name (`/layer.0/mlp/fc1/MatMul` -> `layer.0.mlp.fc1`).
    """
    weights = [tensor.name for tensor in graph.initializer]
    names = {name: name.removesuffix("_quantized") for name in weights if not _is_anonymous(name)}
    biases = _weights_beside_biases(graph, names)
    anonymous = set(weights) - names.keys()
    for node in graph.node:
        index = WEIGHT_INPUT.get(node.op_type, 1)
        weight = node.input[index] if index < len(node.input) else ""
        if weight in anonymous and weight not in names:
            names[weight] = biases.get(node.output[0]) or _weight_of_node(node)
    return {weight: name for weight, name in names.items() if name}


def _is_anonymous(name: str) -> bool:
    return "::" in name or "/" in name or name.isdigit()


def _weights_beside_biases(graph: onnx.GraphProto, names: Mapping[str, str]) -> dict[str, str]:
    """Return value -> `<path>.weight` for every value that `<path>.bias` is added to."""
    added = {}
    for node in graph.node:
        if node.op_type == "Add":
            for bias, value in (node.input, reversed(node.input)):
                name = names.get(bias, "")
                if name.endswith((".bias", "_bias")):
                    added[value] = name.removesuffix("bias") + "weight"
    return added


def _weight_of_node(node: onnx.NodeProto) -> str:
    folder = str(node.name).strip("/").rpartition("/")[0]
    return folder.replace("/", ".") + ".weight" if folder else ""
