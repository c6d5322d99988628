"""Measure how close to float the integers are, for README.md: python scripts/measure.py [deit_small] [vit_s]

Needs the packages of the extra `test` (scripts/install.sh test) and an idle machine; takes about 3 minutes.
Results go to scripts/measured.json, from there into README.md; without an argument both are measured. Speed
is measured by scripts/bench.sh.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import quickstart
from shared.parts import environment
from shared.readme import put

import tvmq
from tvmq.environment import cpu_name
from tvmq.progress import StageClock

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "measure"
RESULTS = ROOT / "scripts" / "measured.json"
CALIBRATION_SAMPLES, HELD_OUT_SAMPLES = 32, 16
LAST_NORM = "backbone.layernorm"  # the encoder's output in the ViT-S
LAST_NORM_ONNX = "/backbone/layernorm/Add_1_output_0"


def deit_small() -> dict[str, Any]:
    """Compile a random DeiT-S; set its answers beside those in float."""
    import torch

    tvmq.mend_torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model("deit_small_patch16_224", pretrained=False).eval()
    samples = [torch.randn(1, 3, 224, 224) for _ in range(CALIBRATION_SAMPLES)]
    held_out = [torch.randn(1, 3, 224, 224) for _ in range(HELD_OUT_SAMPLES)]
    clock = StageClock()
    began = time.perf_counter()
    compiled = tvmq.compile(model, example_inputs=(samples[0],), calibration=samples, progress=clock)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        cosines = [quickstart.cosine(model(x).numpy(), compiled(x).numpy()) for x in held_out]
    verdicts = [compiled.verify(x) for x in held_out[:2]]
    return {
        "compile_s": seconds,
        "stages_s": clock.seconds,
        "cosines": cosines,
        "sites": verdicts[0].sites,
        "bit_exact": all(verdict.ok for verdict in verdicts),
        "integer_share": compiled.coverage.macs_integer_fraction,
    }


def vit_s() -> dict[str, Any]:
    """Compile the pretrained ViT-S on photos; compare it with float on photos not calibrated on."""
    folder = OUT / "vit_s"
    quickstart.photos(folder)
    command = [
        sys.executable,
        "-m",
        "tvmq",
        "compile",
        "vit_s.onnx",
        "--calibration",
        "calibration",
        "--json",
    ]
    ran = subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, env=environment())
    quickstart.compare(folder)
    numbers = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    stages = json.loads(ran.stdout)["seconds"]
    cosines = token_cosines(folder / "vit_s.onnx", folder / "vit_s.tvmq")
    return numbers | {"compile_s": sum(stages.values()), "stages_s": stages, "token_cosines": cosines}


def token_cosines(model: Path, artifact: Path) -> list[float]:
    """Return the cosine between the encoder's tokens in float and in integers, one per held-out photo."""
    import onnx

    opened = onnx.load(model)
    opened.graph.output.append(onnx.helper.make_empty_tensor_value_info(LAST_NORM_ONNX))
    session = quickstart.float_session(opened.SerializeToString(), 1)
    compiled = tvmq.load(artifact, threads=1)
    scales = compiled.manifest.description.scales
    (scale,) = (s for s in scales if s.tensor == LAST_NORM and s.role == "value")
    found = []
    for photo in sorted((artifact.parent / "held_out").glob("imagenet_*.jpg")):
        x = quickstart.load_photo(photo, compiled)
        tokens = session.run([LAST_NORM_ONNX], {session.get_inputs()[0].name: x})[0]
        codes = compiled.trace(x)[LAST_NORM]
        found.append(
            quickstart.cosine(tokens, scale.smallest * (codes.astype(np.float64) - scale.zero_point))
        )
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    vit = results["vit_s"]
    models = {"DeiT-S, random weights": results["deit_small"], "ViT-S/14 with decoder, pretrained": vit}
    slow, fast = (vit["latency"][key] for key in ("float", "integer"))
    rows: list[tuple[str, Iterable[str]]] = [
        ("batch 1", models),
        ("---", ["---:"] * len(models)),
        ("cosine of the output to float: mean, worst", (spread(m["cosines"], 5) for m in models.values())),
        ("cosine of the encoder's tokens: mean, worst", ("", spread(vit["token_cosines"], 4))),
        (
            "mean absolute error of the map (0 to 1): mean, worst",
            ("", spread(vit["map_errors"], 4, worst=max)),
        ),
        ("tensors equal to the reference bit for bit", (verdict(m) for m in models.values())),
        ("multiplications done in integers", (f"{100 * m['integer_share']:.0f} %" for m in models.values())),
        ("compile, calibration included", (f"{m['compile_s']:.0f} s" for m in models.values())),
        ("file", ("", f"{vit['mb']['float']:.1f} MB, now {vit['mb']['integer']:.1f} MB")),
        ("ONNX Runtime float, one thread: median (p10, p90)", ("", milliseconds(slow))),
        ("tvmq, one thread: median (p10, p90)", ("", milliseconds(fast))),
        ("times faster", ("", f"{slow['median_ms'] / fast['median_ms']:.2f}")),
    ]
    return "\n".join(f"| {' | '.join((name, *cells))} |" for name, cells in rows)


def milliseconds(timing: Mapping[str, float]) -> str:
    """Return a latency with its spread."""
    return f"{timing['median_ms']:.1f} ms ({timing['p10_ms']:.1f}, {timing['p90_ms']:.1f})"


def spread(values: Sequence[float], digits: int, worst: Callable[[Sequence[float]], float] = min) -> str:
    """Return mean and worst."""
    return f"{np.mean(values):.{digits}f}, {worst(values):.{digits}f}"


def verdict(numbers: Mapping[str, Any]) -> str:
    """Return how much was verified."""
    return f"all {numbers['sites']}" if numbers["bit_exact"] else "NOT ALL"


def machine() -> str:
    """Return the processor and the versions that were measured, as a sentence."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("apache-tvm", "onnxruntime", "torch"))
    return f"Measured on {cpu_name()} with {packages}."


def main(wanted: Sequence[str]) -> None:
    """Measure, keep the numbers, renew README.md."""
    measures: dict[str, Callable[[], Any]] = {"deit_small": deit_small, "vit_s": vit_s}
    unknown = set(wanted) - set(measures)
    if unknown:
        raise SystemExit(f"measure: {', '.join(sorted(unknown))} is none of {', '.join(measures)}")
    OUT.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in wanted or measures:
        print(f"== {name}", flush=True)
        results[name] = measures[name]()
    results["machine"] = machine()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if set(measures) <= set(results):
        put(ROOT / "README.md", "scripts/measure.py", f"{table(results)}\n\n{results['machine']}")
        print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
