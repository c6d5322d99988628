"""`import tvmq` must stay instant."""

import subprocess
import sys

import pytest

import tvmq

HEAVY = ("tvm", "tvm_ffi", "torch", "onnx", "numpy")


def test_importing_tvmq_is_instant_and_light():
    code = (
        "import sys, time; began = time.process_time(); import tvmq\n"
        f"print(time.process_time() - began, *(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 0.3


def test_loading_needs_neither_tvm_nor_torch():
    code = f"import sys, tvmq; tvmq.load; print(*(m for m in {HEAVY[:-1]} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'; it has "):
        _ = tvmq.quantise
    assert "load" in dir(tvmq)
