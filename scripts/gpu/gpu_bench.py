"""See scripts/gpu_bench.sh."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_models
import gpu_peak
import gpu_rows
import gpu_tiles
import numpy as np
from closeness import cosine
from gpu_models import About, Prepared
from gpu_rows import ENGINES, OURS, Row
from parts import HERE as SHARED
from parts import ROOT, NotMeasuredError
from readme import put, write_whole
from turns import Job, Worker, take_turns

from tvmq.bench import Timing
from tvmq.errors import TvmqError
from tvmq.gpu import features_of_arch, lacking, this_gpu

RESULTS = ROOT / "scripts" / "gpu_benchmarks.json"
ROWS, SITE = "rows.json", "site"
ROUNDS = 15
SMOKE_TARGET = "h100"
NO_GPU = 5  # exit code: the environment lacks something


def prepare(
    folder: Path,
    names: Sequence[str],
    batches: Sequence[int],
    target: str,
    python: str,
    *,
    tiles: bool = False,
) -> None:
    """Fill a folder with all that --run needs."""
    import gpu_runtime_files

    from tvmq.target import load_profile

    profile = load_profile(target)
    if profile.capability is None:
        raise SystemExit(f"gpu_bench: {target!r} is no GPU; give one that `tvmq targets` lists")
    folder.mkdir(parents=True, exist_ok=True)
    arch = str(profile.tvm_target["arch"])
    gpu_runtime_files.prepare(folder / SITE, python)
    gpu_peak.prepare(folder, arch)
    found = About(target=profile.name, arch=arch)
    for name in names:
        of_this = [1] if name == gpu_models.PRETRAINED else batches
        made = gpu_models.prepare(folder, name, of_this, profile.name)
        found = replace(found, models=(*found.models, *made))
        write_whole(folder / gpu_models.ABOUT, json.dumps(found.to_json(), indent=1) + "\n")
        size = sum(path.stat().st_size for path in (folder / name).iterdir())
        print(f"{name}: {size / 1e6:.1f} MB", flush=True)
    if tiles:
        print(f"{len(gpu_tiles.prepare(folder, profile.name))} kernels in {gpu_tiles.LIBRARY}", flush=True)


def measure(
    folder: Path, names: Sequence[str], batches: Sequence[int], rounds: int, *, tiles: bool = False
) -> int:
    """Check and measure what the folder holds; write FOLDER/rows.json."""
    found, gpu = gpu_models.about(folder), this_gpu()
    if wanted := lacking(features_of_arch(found.arch), gpu):
        print(f"gpu_bench: {folder} is for {found.target}, which needs {wanted}", file=sys.stderr)
        return NO_GPU
    assert gpu is not None
    try:
        peak = gpu_peak.measured(folder, found.arch)
        print(f"peak, GMAC/s: {peak.by_instructions}", flush=True)
    except NotMeasuredError as failed:
        peak = None
        print(f"peak not measured: {failed}", flush=True)
    if tiles:
        print(gpu_tiles.measure(folder, peak and peak.gmacs), flush=True)
        return 0
    rows: list[Row] = []
    for each in found.models:
        if (names and each.model not in names) or each.batch not in batches:
            continue
        empty = {"model": each.model, "batch": each.batch, "gpu": gpu.name, "rounds": rounds}
        base = {**empty, "macs": each.macs, "settings": {}, "versions": {}}
        base["peak_gmacs"] = peak and peak.gmacs
        new = [
            Row(engine=engine, **values) for engine, values in measured(folder, each, rounds, base).items()
        ]
        rows = gpu_rows.merged(folder / ROWS, new)
        print(
            "\n".join(f"{r.model} {r.batch} {r.engine}: {r.timing or r.reason} {r.exact or ''}" for r in new),
            flush=True,
        )
    print(gpu_rows.markdown(rows))
    return 0


def measured(folder: Path, what: Prepared, rounds: int, base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of each engine's row."""
    with tempfile.TemporaryDirectory() as place:
        jobs = jobs_of(folder, what, Path(place))
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            workers = started(jobs, found, stack)
            seconds = take_turns(workers, rounds, found, lambda: None)
            answer = np.load(folder / what.model / f"{what.batch}.npy")
            for name in workers.keys() - found.keys():
                found[name] = seen(workers[name], seconds[name], answer, {**base, "engine": name})
    return {
        name: {**base, **({"reason": str(each)} if isinstance(each, NotMeasuredError) else each)}
        for name, each in found.items()
    }


def jobs_of(folder: Path, what: Prepared, place: Path) -> dict[str, Job]:
    """Return a job for each engine; all get the golden input of the artifact."""
    artifact, inputs = place / "model.tvmq", place / "input.npz"
    source = folder / what.model
    gpu_models.joined(source / f"{what.batch}.tvmq", source / gpu_models.CONSTANTS, artifact)
    golden = golden_inputs(artifact)
    np.savez(inputs, **golden)
    paths = os.pathsep.join(map(str, (ROOT, SHARED, folder.resolve() / SITE)))
    more = {"PYTHONPATH": paths}
    python = Path(sys.executable)
    jobs = {OURS: Job(python, "tvmq-gpu", artifact, inputs, 1, more)}
    for engine in ENGINES:
        if engine != OURS:
            jobs[engine] = Job(python, engine, Path(what.model), inputs, 1, more)
    return jobs


def golden_inputs(artifact: Path) -> dict[str, Any]:
    """Return the golden input of an artifact, by the names of its inputs."""
    from tvmq.artifact import open_artifact

    opened = open_artifact(artifact)
    samples = zip(opened.built.inputs, opened.golden.inputs, strict=True)
    return {spec.name: sample.value() for spec, sample in samples}


def started(jobs: Mapping[str, Job], failed: dict[str, Any], stack: ExitStack) -> dict[str, Worker]:
    """Start all engines at once, since torch.compile takes its time; who fails gets its reason in failed."""

    def start(job: Job) -> Worker | NotMeasuredError:
        try:
            return Worker(job)
        except NotMeasuredError as reason:
            return reason

    with ThreadPoolExecutor(len(jobs)) as pool:
        found = dict(zip(jobs, pool.map(start, jobs.values()), strict=True))
    failed |= {name: each for name, each in found.items() if isinstance(each, NotMeasuredError)}
    return {name: stack.enter_context(each) for name, each in found.items() if isinstance(each, Worker)}


def seen(worker: Worker, seconds: list[float], wanted: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of an engine now, as fields of a row, or why that counts for nothing."""
    timing = Timing.of_seconds(seconds)
    told = worker.ask({"about": True})
    fields = {
        "timing": timing,
        "cosine": cosine(np.load(worker.answer), wanted),
        "settings": told["settings"],
        "versions": told["versions"],
    }
    if base["engine"] == OURS:
        verdict = worker.ask({"verify": True})
        if verdict["mismatches"]:
            first = ", ".join(verdict["mismatches"][:3])
            return {"reason": f"{len(verdict['mismatches'])} tensors differ from the reference: {first}"}
        fields["exact"] = f"all {verdict['sites'] + verdict['outputs']} tensors"
        fields["call"] = Timing.of_seconds(verdict["call_s"])
        if base["peak_gmacs"]:
            least_ms = base["macs"] / base["peak_gmacs"] / 1e6
            fields["percent_of_peak"] = 100 * least_ms / timing.median_ms
    return fields


def smoke() -> int:
    """Check all but the GPU: the preparation of a small model, the tables, the refusal."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, list(gpu_models.SMOKE), (1, 2), SMOKE_TARGET, "{}.{}".format(*sys.version_info))
        if this_gpu() is not None:
            return measure(folder, (), (1, 2), 3)
        if measure(folder, (), (1, 2), 3) != NO_GPU:
            raise SystemExit("gpu_bench: a machine without a GPU was not refused")
    print(gpu_rows.markdown(gpu_rows.merged(RESULTS, ())) if RESULTS.exists() else gpu_rows.NOT_MEASURED)
    return 0


def numbers(text: str) -> tuple[int, ...]:
    """Read "1,8"."""
    return tuple(int(word) for word in text.split(","))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; the models named are known."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_bench.sh")
    halves = parser.add_mutually_exclusive_group(required=True)
    for half in ("prepare", "run", "table"):
        halves.add_argument(f"--{half}", type=Path, metavar="FOLDER")
    halves.add_argument("--smoke", action="store_true")
    parser.add_argument("--models", default="", help=f"of {', '.join(gpu_models.TITLES)}; default: all")
    parser.add_argument("--batches", type=numbers, default=gpu_models.BATCHES, help="default: 1,8,64")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each engine; default: {ROUNDS}")
    parser.add_argument("--tiles", action="store_true", help="no models: kernels with every tile")
    parser.add_argument("--target", default="h100", help="of `tvmq targets`; default: h100")
    own = "{}.{}".format(*sys.version_info)
    parser.add_argument("--python", default=own, help=f"the version there; default: {own}")
    given = parser.parse_args(arguments)
    given.models = tuple(filter(None, given.models.split(",")))
    if unknown := set(given.models) - set(gpu_models.TITLES):
        parser.error(f"no model {', '.join(sorted(unknown))}; known: {', '.join(gpu_models.TITLES)}")
    return given


def main(arguments: Sequence[str]) -> int:
    """Do one half."""
    given = parsed(arguments)
    if given.smoke:
        return smoke()
    if given.prepare:
        names = () if given.tiles else given.models or (*gpu_models.NAMES, gpu_models.PRETRAINED)
        prepare(given.prepare, names, given.batches, given.target, given.python, tiles=given.tiles)
        return 0
    if given.run:
        sys.path.append(str(given.run.resolve() / SITE))
        return measure(given.run, given.models, given.batches, given.rounds, tiles=given.tiles)
    rows = gpu_rows.merged(RESULTS, gpu_rows.load_rows(given.table / ROWS, Row))
    put(ROOT / "README.md", "scripts/gpu_bench.sh", gpu_rows.markdown(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (TvmqError, NotMeasuredError) as error:
        raise SystemExit(f"gpu_bench: {error}") from None
