"""Turn a float PyTorch or ONNX model into a verified integer program for the CPU you name.

Importing this package is instant; TVM and torch are loaded by what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvmq import plugin

if TYPE_CHECKING:
    from tvmq.analysis.records import Analysis as Analysis
    from tvmq.compiled import CompiledModel as CompiledModel
    from tvmq.compiled import load as load
    from tvmq.errors import BusyMachineWarning as BusyMachineWarning
    from tvmq.errors import CalibrationWarning as CalibrationWarning
    from tvmq.errors import TvmqError as TvmqError
    from tvmq.errors import TvmqWarning as TvmqWarning
    from tvmq.evaluation import Evaluation as Evaluation
    from tvmq.evaluation import evaluate as evaluate
    from tvmq.plan.options import Budget as Budget
    from tvmq.plan.recipe import Recipe as Recipe
    from tvmq.tune.options import Tune as Tune

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOME = {
    "compile": "tvmq.pipeline",
    "evaluate": "tvmq.evaluation",
    "analyze": "tvmq.analysis.run",
    "costs": "tvmq.costing",
    "load": "tvmq.compiled",
    "CompiledModel": "tvmq.compiled",
    "Benchmark": "tvmq.breakdown",
    "Evaluation": "tvmq.evaluation",
    "Verification": "tvmq.verification",
    "Analysis": "tvmq.analysis.records",
    "Coverage": "tvmq.spec",
    "Plan": "tvmq.spec",
    "Tune": "tvmq.tune.options",
    "Recipe": "tvmq.plan.recipe",
    "Budget": "tvmq.plan.options",
    "draw_plan": "tvmq.analysis.plan_pictures",
    "TvmqError": "tvmq.errors",
    "TvmqWarning": "tvmq.errors",
    "BusyMachineWarning": "tvmq.errors",
    "CalibrationWarning": "tvmq.errors",
    "mend_torchvision": "tvmq.frontend.torch",
}

_COMPILING = ("analyze", "compile", "costs", "mend_torchvision")

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tvmq' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    if name in _COMPILING:
        importlib.import_module("tvmq.environment").require_compiler()
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


plugin.install()
