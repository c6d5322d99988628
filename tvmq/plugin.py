"""Make `relax.get_pipeline("tvmq", ...)` work, whichever of tvm and tvmq is imported first.

TVM itself is not imported for that.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PIPELINE = "tvmq"
WATCHED = "tvm.relax.pipeline"


def install() -> None:
    """Register the pipeline with TVM now, or as soon as TVM's pipelines are imported."""
    loaded = sys.modules.get(WATCHED)
    if loaded is not None and hasattr(loaded, "register_pipeline"):
        register(loaded)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        watcher: Any = _Watcher()
        sys.meta_path.insert(0, watcher)


def register(pipelines: ModuleType) -> None:
    """Add "tvmq" to TVM's table of pipelines, once."""
    if PIPELINE not in pipelines.PIPELINE_MAP:
        pipelines.register_pipeline(PIPELINE)(pipeline)


def pipeline(**options: Any) -> Any:
    """Return tvmq's lowering as a TVM pass; options as for tvmq.lowering_pipeline.lowering_pipeline."""
    from tvmq.lowering_pipeline import lowering_pipeline

    return lowering_pipeline(**options)


class _Watcher:
    """An import finder that finds nothing itself but registers after the watched module has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        watcher: Any = self
        sys.meta_path.remove(watcher)
        spec = importlib.util.find_spec(name)  # by the other finders
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            register(module)

        # The loader is this module's own; patching it, unlike wrapping it, leaves inspect working.
        setattr(spec.loader, "exec_module", run_and_register)  # noqa: B010
        return spec
