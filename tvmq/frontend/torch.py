"""Import a torch module or an exported program through torch.export."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from tvm.relax.frontend.torch import from_exported_program
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.frontend.naming import name_and_bind
from tvmq.frontend.weights import check_finite, check_precision

# TVM imports these, but not into one dataflow block.
CONTROL_FLOW = frozenset({"cond", "while_loop", "_assert_async.msg"})

TORCHVISION_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torch(model: Any, example_inputs: Any) -> tvm.IRModule:
    """Return model, a torch.nn.Module, ExportedProgram or .pt2 path, at level float."""
    mend_torchvision()
    args, kwargs = _arguments(example_inputs)
    if isinstance(model, torch.nn.Module):
        program, batch = _export(model, args, kwargs), 1
    else:
        program = model if isinstance(model, ExportedProgram) else load_program(Path(model))
        batch = _batch(program, args, kwargs)
    with torch.no_grad(), _quiet():
        program = program.run_decompositions()
    _check_operators(program)
    _check_outputs(program)
    _check_weights(program)
    mod = _fix_batch(_translate(program), batch)
    return name_and_bind(mod, {spec.arg.name: spec.target for spec in _weight_specs(program)})


def load_program(path: Path) -> ExportedProgram:
    """Return the program that torch.export.save wrote to path."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file, wanted a .pt2 program; check the path")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: is no .pt2 archive or is truncated; write it again with torch.export.save")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise UsageError(
            f"{path}: torch {torch.__version__} cannot load it ({_first_line(error)}); "
            "write it again with torch.export.save of this version"
        ) from error


@functools.cache
def mend_torchvision() -> torch.library.Library | None:
    """Make `import torchvision` and `import timm` work beside a torch that torchvision was not built for.

    torchvision registers fake kernels for two operators of its C++ library even when that library does not
    load, and dies. Declare the two, only then. Call it before the import; returns what keeps them declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or _torchvision_loads(spec):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + TORCHVISION_SCHEMA)  # type: ignore[no-untyped-call]
    return library


def _torchvision_loads(spec: Any) -> bool:
    """Load torchvision's own operators as its import will do, and say whether that worked."""
    for folder in spec.submodule_search_locations:
        for shared_object in (*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")):
            with contextlib.suppress(OSError):
                torch.ops.load_library(shared_object)  # type: ignore[no-untyped-call]
                return True
    return False


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example_inputs as positional and keyword tensors."""
    if example_inputs is None:
        return (), {}
    if isinstance(example_inputs, Mapping):
        return (), {str(name): _tensor(repr(name), value) for name, value in example_inputs.items()}
    several = example_inputs if isinstance(example_inputs, (tuple, list)) else [example_inputs]
    return tuple(_tensor(str(index), value) for index, value in enumerate(several)), {}


def _tensor(name: str, value: Any) -> Any:
    """Return value with its arrays as tensors; nested lists, tuples and dicts are left to torch.export."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        raise UsageError(
            f"example_inputs: {name} is {value!r}, wanted an array or a tensor; "
            "set options in the model or its configuration, and leave them out here"
        )
    return value


def _export(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    if not args and not kwargs:
        raise UsageError(
            f"{type(model).__name__}: a torch module does not say its input shapes, wanted example_inputs; "
            "give a tuple of tensors, or a dict by argument name"
        )
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()  # the caller's module stays in training mode
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, args, kwargs)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__}: torch.export cannot trace it with these example_inputs "
            f"({_first_line(error)}); try model(*example_inputs) first, then rewrite what depends on data, "
            "or export the model to ONNX and import that"
        ) from error


def _batch(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the batch for a program that leaves it open; UsageError where example inputs do not fit."""
    batch = 1
    shapes = _input_shapes(program)
    given = kwargs or dict(zip(shapes, args, strict=False))
    if len(args) > len(shapes) or not given.keys() <= shapes.keys():
        raise UsageError(
            f"example_inputs: do not fit the program, whose inputs are {list(shapes)}; give these"
        )
    for name, shape in shapes.items():
        example = tuple(given[name].shape) if name in given else None
        if example is not None and len(example) != len(shape):
            raise UsageError(
                f"example_inputs: {name!r} is {list(example)}, the program takes {shape}; give that shape"
            )
        for axis, size in enumerate(shape):
            if not isinstance(size, int) and axis > 0:
                raise UsageError(
                    f"input {name!r}: dimension {axis} is free ({size}), tvmq compiles one shape; "
                    "export the program again with that dimension fixed"
                )
            if not isinstance(size, int):
                batch = example[0] if example else batch
            elif example is not None and example[axis] != size:
                raise UsageError(
                    f"example_inputs: {name!r} is {list(example)}, the program takes {shape}; give that shape"
                )
    return batch


def _input_shapes(program: ExportedProgram) -> dict[str, list[Any]]:
    """Return input -> dimensions, int where fixed, in the program's order."""
    inputs = set(program.graph_signature.user_inputs)
    return {
        node.name: [size if isinstance(size, int) else str(size) for size in node.meta["val"].shape]
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in inputs and isinstance(node.meta.get("val"), torch.Tensor)
    }


def _check_operators(program: ExportedProgram) -> None:
    """Raise UnsupportedModelError that lists every operator TVM has no conversion for, with its module."""
    known = ExportedProgramImporter().convert_map.keys() - CONTROL_FLOW
    missing: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            missing.setdefault(str(node.target), _module_of(node))
    if not missing:
        return
    listed = ", ".join(f"{name} (in {module})" for name, module in missing.items())
    raise UnsupportedModelError(
        f"model: TVM cannot import {listed}; rewrite these modules with other operators, give "
        "ExportedProgram.run_decompositions a decomposition for them, or export the model to ONNX and import "
        "that (`ignored` does not help: it keeps an imported operator in float)"
    )


def _check_outputs(program: ExportedProgram) -> None:
    outputs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    for index, spec in enumerate(outputs):
        if not isinstance(spec.arg, TensorArgument):
            raise UnsupportedModelError(
                f"model: output {index} is {getattr(spec.arg, 'value', spec.arg)!r}, "
                "tvmq returns tensors only; wrap the model in a module that returns the tensors you need"
            )


def _module_of(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (stack[-1][0] if stack else "") or "the model itself"


def _check_weights(program: ExportedProgram) -> None:
    tensors = {spec.target: _weight(program, spec) for spec in _weight_specs(program)}
    for name, tensor in tensors.items():
        check_precision(name, str(tensor.dtype).removeprefix("torch."), "call model.float() first")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    check_finite((name, tensor.detach().cpu().numpy()) for name, tensor in floats.items())


def _weight_specs(program: ExportedProgram) -> list[Any]:
    """Return the input specs of parameters, buffers and constants: all that is no user input."""
    users = set(program.graph_signature.user_inputs)
    return [s for s in program.graph_signature.input_specs if s.target and s.arg.name not in users]


def _weight(program: ExportedProgram, spec: Any) -> torch.Tensor:
    source = program.state_dict if spec.target in program.state_dict else program.constants
    return torch.as_tensor(source[spec.target])


def _translate(program: ExportedProgram) -> tvm.IRModule:
    try:
        with _quiet():
            return from_exported_program(
                program,
                keep_params_as_input=True,
                unwrap_unit_return_tuple=True,
                run_ep_decomposition=False,
            )
    except Exception as error:
        raise UnsupportedModelError(
            f"model: TVM's torch importer stopped at: {_first_line(error)}; rewrite that part of the model, "
            "or export it to ONNX and import that"
        ) from error


def _fix_batch(mod: tvm.IRModule, batch: int) -> tvm.IRModule:
    """Replace the free batch, if there is one, by its size."""
    main = mod["main"]
    free = {
        size
        for param in main.params
        for size in getattr(param.ty, "shape", None) or ()
        if isinstance(size, tvm.tirx.Var)
    }
    if not free:
        return mod
    main = main.bind_symbolic_vars({var: batch for var in free})
    for bound in ("tir_var_lower_bound", "tir_var_upper_bound"):
        main = main.without_attr(bound)
    return tvm.IRModule({"main": main})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the one warning of torch.export that its user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        yield


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
