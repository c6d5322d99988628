"""import_model chooses the importer without loading the other one."""

import subprocess
import sys

import pytest

from tvmq.errors import UsageError
from tvmq.frontend import import_model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ([1], "model: is a list, wanted torch.nn.Module, "),
        ("net.pth", "net.pth: holds weights without a program, wanted .onnx or .pt2; load it in Python"),
        ("net.tflite", "net.tflite: has suffix '.tflite', wanted .onnx or .pt2; export the model"),
        ("absent.onnx", "absent.onnx: no such file, wanted an ONNX model; check the path"),
        ("absent.pt2", "absent.pt2: no such file, wanted a .pt2 program; check the path"),
    ],
)
def test_what_is_no_model_gets_a_sentence(model, message):
    with pytest.raises(UsageError) as caught:
        import_model(model)
    assert str(caught.value).startswith(message)


def test_importing_the_package_loads_no_framework():
    code = "import sys, tvmq.frontend; print(sorted({'torch', 'onnx', 'tvm'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
