import subprocess
import sys

import pytest
from tvm import relax

import tvmq

PIPELINES = """
PIPELINE_MAP = {"zero": None}
def register_pipeline(name):
    def register(function):
        PIPELINE_MAP[name] = function
        return function
    return register
"""


@pytest.fixture
def stand_in(tmp_path):
    """A package tvm with nothing but the table of pipelines, which imports in no time."""
    (tmp_path / "tvm" / "relax").mkdir(parents=True)
    (tmp_path / "tvm" / "__init__.py").write_text("")
    (tmp_path / "tvm" / "relax" / "__init__.py").write_text("from . import pipeline\n")
    (tmp_path / "tvm" / "relax" / "pipeline.py").write_text(PIPELINES)
    return tmp_path


@pytest.mark.parametrize("order", ["import tvm.relax, tvmq", "import tvmq, tvm.relax"])
def test_the_pipeline_is_registered_in_either_order(stand_in, order):
    code = (
        f"import sys; sys.path.insert(0, {str(stand_in)!r}); {order}\n"
        "from tvm.relax.pipeline import PIPELINE_MAP; import inspect, tvm.relax.pipeline as p\n"
        "LATE = any(m in sys.modules for m in ('tvmq.pipeline', 'tvmq.lowering_pipeline'))\n"
        "print(sorted(PIPELINE_MAP), LATE, inspect.getsource(p)[:13].strip())\n"
        "print([f for f in sys.meta_path if 'Watcher' in repr(f)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['tvmq', 'zero'] False PIPELINE_MAP", "[]"]


def test_tvm_itself_knows_the_pipeline():
    assert tvmq.plugin.PIPELINE in relax.pipeline.PIPELINE_MAP
