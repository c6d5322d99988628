"""The shape of the tree: imports never point to a later stage, every module has a mirrored test file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "tvmq").rglob("*.py"))

# Each line may import from itself and from earlier lines. A folder stands for all its modules.
STAGES = (
    ("errors", "progress", "cpu_names", "numerics", "one_thread", "neighbours", "bit_planes"),
    ("record", "bench"),
    ("line_file",),
    ("spec", "environment"),
    ("gpu",),
    ("cuda_libraries",),
    ("linker",),
    ("new_file",),
    ("target", "formats", "unary", "images", "sites", "golden"),
    ("machine", "tracker"),
    ("device", "own_process"),
    ("reference_layers",),
    ("reference_ops",),
    ("reference",),
    ("frontend", "model_file"),
    ("passes",),
    ("calibrate",),
    ("plan",),
    ("quantize",),
    ("samples",),
    ("quantizer",),
    ("schedule",),
    ("exactness",),
    ("build",),
    ("runtime",),
    ("gpu_device",),
    ("gpu_runtime", "sample_program"),
    ("tune",),
    ("cost",),
    ("container", "manifest", "inputs", "verification", "breakdown"),
    ("reference_model",),
    ("arena",),
    ("artifact",),
    ("compiled",),
    ("doctor",),
    ("report",),
    ("costing",),
    ("prepared",),
    ("plan_evaluation",),
    ("automatic",),
    ("compile_options",),
    ("pipeline", "lowering_pipeline", "evaluation"),
    ("analysis",),
    ("plugin",),
    ("__init__",),
    ("cli_output", "cli_options", "cli_process"),
    ("board_sessions",),
    ("board", "board_worker"),
    ("cli_boards", "cli_devices"),
    (
        "cli_compile",
        "cli_analyze",
        "cli_artifact",
        "cli_cost",
        "cli_environment",
        "cli_evaluate",
    ),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}

# plugin is called by TVM, long after everything is loaded; the other two only ask for the version.
EXCEPTIONS = {("plugin", "pipeline"), ("artifact", "__init__"), ("pipeline", "__init__")}

WITHOUT_MIRROR = {
    "errors": "classes without behaviour",
    "cpu_names": "tables; tested through test_target",
    "cli_options": "tested through test_cli",
    "cli_compile": "tested through test_cli",
    "cli_analyze": "tested through analysis/test_run",
    "cli_artifact": "tested through test_cli",
    "cli_boards": "tested through test_board",
    "cli_devices": "tested through test_board",
    "board_worker": "tested through test_board",
    "cli_cost": "tested through test_costing",
    "cli_evaluate": "tested through test_cli",
    "cli_environment": "tested through test_cli",
}


def stage_of(module: Path) -> str:
    return module.relative_to(ROOT / "tvmq").parts[0].removesuffix(".py")


def imported_stages(module: Path) -> Iterator[tuple[str, int]]:
    """Yield the stage and the line of every import of tvmq, also of those inside functions."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write tvmq.<module>"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "tvmq":
                stage = rest.partition(".")[0]
                yield (stage if stage in RANK else "__init__"), node.lineno


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_earlier_stages(module: Path):
    stage = stage_of(module)
    assert stage in RANK, f"{module.name}: give it a place in STAGES"
    later = [
        f"line {line}: {imported}"
        for imported, line in imported_stages(module)
        if RANK[imported] > RANK[stage] and (stage, imported) not in EXCEPTIONS
    ]
    assert not later


def test_every_module_has_a_mirrored_test_file():
    missing = []
    for module in MODULES:
        path = module.relative_to(ROOT / "tvmq")
        name = "init" if path.stem == "__init__" else path.stem
        body = ast.parse(module.read_text(encoding="utf-8")).body
        defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)
        mirror = ROOT / "tests" / path.parent / f"test_{name}.py"
        if defines and path.stem not in WITHOUT_MIRROR and not mirror.exists():
            missing.append(str(mirror.relative_to(ROOT)))
    assert not missing
