"""scripts/arm: one quantized model gives the same bits on four instruction sets, two of them emulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tvmq.cli_devices import gpu_targets
from tvmq.environment import cpu_features
from tvmq.errors import EnvironmentMismatchError
from tvmq.linker import require_linker
from tvmq.machine import machine_features, this_machine
from tvmq.target import load_profile

ROOT = Path(__file__).parents[1]
X86 = ("x86_avx512_vnni", "x86_avx2")

pytestmark = pytest.mark.slow


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in ("shared", "bench", "arm"):
        monkeypatch.syspath_prepend(ROOT / "scripts" / folder)
    import emulate

    return emulate


def test_one_recipe_gives_the_same_bits_on_x86_and_on_emulated_boards(scripts: Any, tmp_path: Path) -> None:
    try:
        require_linker("aarch64-linux-gnu")
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    gpus = gpu_targets(this_machine(), machine_features())  # none, or those that this machine can run
    models = scripts.compiled("tiny", [*X86, *scripts.CORES, *gpus])
    wanted = scripts.exact(models["rpi4"].manifest)  # the reference's: no such code runs here
    assert len(wanted) == 24
    ran = [name for name in X86 if not load_profile(name).missing(cpu_features())]
    assert {name: scripts.exact(model.manifest) for name, model in models.items()} == dict.fromkeys(
        models, wanted
    )
    assert all(models[name].verify().mismatches == () for name in [*ran, *gpus])
    try:
        python = scripts.emulated_python()
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))
    for target, core in scripts.CORES.items():
        models[target].save(tmp_path / target)
        done = scripts.run_emulated(python, core, tmp_path / target)
        assert "mismatches=()" in done.stdout, done.stderr
        done = scripts.run_program(python, core, tmp_path / target, tmp_path)
        assert done.stdout.startswith(f"all equal: {len(wanted)} tensors, bit for bit"), done.stderr
    refused = scripts.run_emulated(python, scripts.CORES["rpi4"], tmp_path / "rpi5")
    assert "needs the CPU feature asimddp" in refused.stderr
    refused = scripts.run_program(python, scripts.CORES["rpi4"], tmp_path / "rpi5", tmp_path)
    assert (refused.returncode, "needs the CPU feature asimddp" in refused.stderr) == (4, True)
