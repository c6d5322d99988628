"""What a model file says about its inputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tvmq.errors import UsageError
from tvmq.frontend import import_model
from tvmq.model_file import ModelFile, open_model
from tvmq.spec import TensorSpec


def save_onnx(path: Path, shape: list[int | str]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])), path
    )
    return path


def test_a_free_batch_becomes_one(tmp_path: Path):
    path = save_onnx(tmp_path / "m.onnx", ["batch", 3, 8, 8])
    assert open_model(path) == ModelFile(path, (TensorSpec("x", (1, 3, 8, 8), "float32"),), batch=1)


def test_a_free_batch_becomes_the_one_that_is_wanted(tmp_path: Path):
    opened = open_model(save_onnx(tmp_path / "m.onnx", ["batch", 3, 8, 8]), 5)
    assert (opened.inputs[0].shape, opened.batch) == ((5, 3, 8, 8), 5)
    assert import_model(opened.model, opened.examples())["main"].params[0].ty.shape[0] == 5
    free = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(3, 4),), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "m.pt2")
    opened = open_model(tmp_path / "m.pt2", 5)
    assert (opened.inputs[0].shape, opened.batch) == ((5, 4), 5)
    assert import_model(opened.model, opened.examples())["main"].params[0].ty.shape[0] == 5


def test_a_batch_that_the_model_fixes_is_kept(tmp_path: Path):
    path = save_onnx(tmp_path / "m.onnx", [2, 3, 8, 8])
    assert (open_model(path, 2).batch, open_model(path, 2).examples()) == (None, None)
    with pytest.raises(UsageError, match=r"m.onnx: takes x float32\[2, 3, 8, 8\], batches of 5 are wanted"):
        open_model(path, 5)


def test_another_free_dimension_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"input 'x' leaves dimension 2 \(height\) open"):
        open_model(save_onnx(tmp_path / "m.onnx", [1, 3, "height", 8]))


def test_an_exported_program_says_its_inputs(tmp_path: Path):
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    opened = open_model(tmp_path / "m.pt2")
    assert isinstance(opened.model, torch.export.ExportedProgram)
    assert [(spec.shape, spec.dtype) for spec in opened.inputs] == [((1, 4), "float32")]


@pytest.mark.parametrize("name", ["m.pth", "m.onnx", "m.pt2", "m.txt"])
def test_what_is_no_model_gets_a_sentence(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(UsageError, match=rf"{name}: "):
        open_model(tmp_path / name)
