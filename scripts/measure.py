"""Make the numbers of README.md on this machine: python scripts/measure.py [deit_small] [vit_s] [cold_start]

Needs the packages of the extra `test` (scripts/install.sh test) and an idle machine; takes about 5 minutes.
Results go to scripts/measured.json, from there into README.md; without an argument all are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import quickstart

import tvmq
from tvmq.bench import interleave
from tvmq.environment import cpu_name
from tvmq.progress import StageClock
from tvmq.runtime import use_threads

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "measure"
RESULTS = ROOT / "scripts" / "measured.json"
MARKS = ("<!-- measured by scripts/measure.py -->", "<!-- end of measured -->")
ROUNDS = 40
CALIBRATION_SAMPLES, HELD_OUT_SAMPLES = 32, 16
LAST_NORM = "backbone.layernorm"  # the encoder's output in the ViT-S
LAST_NORM_ONNX = "/backbone/layernorm/Add_1_output_0"
COLD_START = """
import sys, time
import numpy as np
import tvmq
model = tvmq.load(sys.argv[1], threads=1)
model(*(np.zeros(spec.shape, spec.dtype) for spec in model.inputs))
assert not {"torch", "tvm"} & set(sys.modules)
"""


def deit_small() -> dict[str, Any]:
    """Compile a random DeiT-S; set it beside ONNX Runtime in float, on one thread and on two."""
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
    path, exported = OUT / "deit_small.tvmq", OUT / "deit_small.onnx"
    compiled.save(path)
    torch.onnx.export(model, (samples[0],), exported, dynamo=False)
    with torch.no_grad():
        cosines = [quickstart.cosine(model(x).numpy(), compiled(x).numpy()) for x in held_out]
    verdicts = [compiled.verify(x) for x in held_out[:2]]
    return {
        "compile_s": seconds,
        "stages_s": clock.seconds,
        "mb": {"float": quickstart.megabytes(exported), "integer": quickstart.megabytes(path)},
        "cosines": cosines,
        "sites": verdicts[0].sites,
        "bit_exact": all(verdict.ok for verdict in verdicts),
        "integer_share": compiled.coverage.macs_integer_fraction,
        "latency": {str(n): against_float(exported, path, held_out[0].numpy(), n) for n in (1, 2)},
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
    ran = subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, env=environment(ROOT))
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


def cold_start() -> dict[str, Any]:
    """Time new processes from start to first answer, where nothing but the runtime is installed."""
    artifact = OUT / "vit_s" / "vit_s.tvmq"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-c", ROOT / "requirements" / "tested.txt", ROOT], check=True)

        def start() -> None:
            subprocess.run([python, "-c", COLD_START, artifact], check=True, cwd=folder, env=environment())

        return interleave({"": start}, rounds=15, warmup=2)[""].to_json()


def against_float(model: Path, artifact: Path, x: np.ndarray[Any, Any], threads: int) -> dict[str, Any]:
    """Return the latencies of ONNX Runtime in float and of tvmq, measured in turns."""
    session = quickstart.float_session(model, threads)
    name = session.get_inputs()[0].name
    use_threads(threads)
    compiled = tvmq.load(artifact, threads=threads)
    runs: dict[str, Callable[[], Any]] = {
        "float": lambda: session.run(None, {name: x}),
        "integer": lambda: compiled(x),
    }
    # ONNX Runtime's worker keeps its core busy for a while after each run.
    pause = 0.2 if threads > 1 else 0.0
    return {key: timing.to_json() for key, timing in interleave(runs, ROUNDS, pause_s=pause).items()}


def environment(*packages: Path) -> dict[str, str]:
    """Return this process's environment with these folders, and no others, for Python to import from."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return clean | ({"PYTHONPATH": os.pathsep.join(map(str, packages))} if packages else {})


def table(results: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    deit, vit = results["deit_small"], results["vit_s"]
    models = {"DeiT-S, random weights": deit, "ViT-S/14 with decoder, pretrained": vit}
    latencies = [(m["latency"]["1"] if m is deit else m["latency"]) for m in models.values()]
    rows: list[tuple[str, Iterable[str]]] = [
        ("one thread, batch 1", models),
        ("---", ["---:"] * len(models)),
        ("ONNX Runtime float: median (p10, p90)", (milliseconds(x["float"]) for x in latencies)),
        ("tvmq W8A8: median (p10, p90)", (milliseconds(x["integer"]) for x in latencies)),
        ("**times faster**", (f"**{faster(x):.2f}**" for x in latencies)),
        ("times faster, two threads", (f"{faster(deit['latency']['2']):.2f}", "")),
        ("file", (f"{m['mb']['float']:.1f} MB, now {m['mb']['integer']:.1f} MB" for m in models.values())),
        ("cosine of the output to float: mean, worst", (spread(m["cosines"], 5) for m in models.values())),
        ("cosine of the encoder's tokens: mean, worst", ("", spread(vit["token_cosines"], 4))),
        (
            "mean absolute error of the map (0 to 1): mean, worst",
            ("", spread(vit["map_errors"], 4, worst=max)),
        ),
        ("tensors equal to the reference bit for bit", (verdict(m) for m in models.values())),
        ("multiplications done in integers", (f"{100 * m['integer_share']:.0f} %" for m in models.values())),
        ("compile, calibration included", (f"{m['compile_s']:.0f} s" for m in models.values())),
        ("new process to first answer", ("", f"{results['cold_start']['median_ms'] / 1e3:.2f} s")),
    ]
    return "\n".join(f"| {' | '.join((name, *cells))} |" for name, cells in rows)


def milliseconds(timing: Mapping[str, float]) -> str:
    """Return a latency with its spread."""
    return f"{timing['median_ms']:.1f} ms ({timing['p10_ms']:.1f}, {timing['p90_ms']:.1f})"


def faster(latency: Mapping[str, Mapping[str, float]]) -> float:
    """Return how many times the integer model is as fast as the float one."""
    return latency["float"]["median_ms"] / latency["integer"]["median_ms"]


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


def write_readme(results: Mapping[str, Any]) -> None:
    """Put the table between the two marks of README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    body = f"{MARKS[0]}\n{table(results)}\n\n{results['machine']}\n{MARKS[1]}"
    path.write_text(before + body + after, encoding="utf-8")


def main(wanted: Sequence[str]) -> None:
    """Measure, keep the numbers, renew README.md."""
    measures: dict[str, Callable[[], Any]] = {
        "deit_small": deit_small,
        "vit_s": vit_s,
        "cold_start": cold_start,
    }
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
        write_readme(results)
        print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
