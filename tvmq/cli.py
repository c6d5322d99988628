"""The command line: what each command takes. What it does is in cli_compile and the like.

    exit 0    done
    exit 1    another failure of the system, e.g. a broken pipe
    exit 2-6  what the errors of tvmq say (see errors.py)
    exit 70   a bug of tvmq; TVMQ_DEBUG=1 shows the traceback
    exit 130  interrupted by Ctrl-C

Only typer is imported here, so that help is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tvmq.cli_boards import boards
from tvmq.cli_options import (
    Artifact,
    Batch,
    Bits,
    CalibrationData,
    Effort,
    Ignore,
    Json,
    MaxDrop,
    MaxMb,
    MaxMs,
    Mean,
    MinCoverage,
    Minutes,
    Model,
    Observer,
    OnDevice,
    Output,
    Picture,
    Preset,
    Ranges,
    RecipeFile,
    Requantize,
    Rescaling,
    Samples,
    SaveRecipe,
    SearchLog,
    Seed,
    Std,
    Strict,
    Target,
    Threads,
    options_of,
    quantizer_of,
)
from tvmq.cli_process import keep_stdout, leave, noted, refuse, told_warnings
from tvmq.errors import TvmqError

USAGE, BUG, INTERRUPTED = 2, 70, 130
NOTHING_WRITTEN = "interrupted; nothing was written"
COSTS_KEPT = "interrupted; what was measured is kept, the same command goes on from there"
TRIALS_KEPT = "interrupted; no artifact was written, what was measured is kept in the tuning database"
PLANS_KEPT = "interrupted; no artifact was written, what was evaluated is in the search log, to go on from"
STOPPED = "interrupted; it no longer serves"
KEPT = {"tune": TRIALS_KEPT, "cost": COSTS_KEPT, "serve": STOPPED, "tracker": STOPPED}

app = typer.Typer(
    name="tvmq",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(boards)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Turn a float PyTorch or ONNX model into a verified integer program for the CPU you name."""
    if version:
        from tvmq import __version__

        print(__version__)


@app.command()
def compile(  # noqa: A001  the command's name; the builtin is not used here
    model: Model,
    calibration: CalibrationData,
    output: Output = None,
    target: Target = "native",
    bits: Bits = "8",
    ignore: Ignore = None,
    requantize: Rescaling = Requantize.POT,
    observer: Ranges = Observer.MSE,
    preset: Effort = Preset.DEFAULT,
    samples: Samples = 128,
    batch: Batch = None,
    mean: Mean = "",
    std: Std = "",
    strict: Strict = False,
    min_coverage: MinCoverage = None,
    seed: Seed = 0,
    max_latency_ms: MaxMs = None,
    max_size_mb: MaxMb = None,
    max_drop: MaxDrop = None,
    minutes: Minutes = None,
    search_log: SearchLog = None,
    recipe: RecipeFile = None,
    save_recipe: SaveRecipe = None,
    picture: Picture = None,
    device: OnDevice = None,
    as_json: Json = False,
) -> int:
    """Calibrate, quantize and compile a model into one file."""
    from tvmq import cli_compile

    options = options_of(target, bits, ignore, requantize, observer, preset, strict, seed)
    limits = (max_latency_ms, max_size_mb, max_drop, minutes)
    options |= cli_compile.planning(limits, search_log, recipe, min_coverage)
    options |= {"device": device} if device else {}
    data = cli_compile.Data(calibration, samples, batch, mean, std)
    beside = cli_compile.Beside(save_recipe, picture)
    return cli_compile.compile_model(model, data, output, options, beside, as_json=as_json)


@app.command()
def tune(
    model: Model,
    calibration: CalibrationData,
    output: Output = None,
    trials: Annotated[
        int, typer.Option(min=0, help="Variants to try of each kernel; 0: only use the database.")
    ] = 32,
    minutes: Annotated[float | None, typer.Option(help="Stop searching after so long.")] = None,
    database: Annotated[
        Path | None,
        typer.Option(help="File of what was measured. Default: tvmq/tuning.jsonl in the cache folder."),
    ] = None,
    target: Target = "native",
    bits: Bits = "8",
    ignore: Ignore = None,
    requantize: Rescaling = Requantize.POT,
    observer: Ranges = Observer.MSE,
    preset: Effort = Preset.DEFAULT,
    samples: Samples = 128,
    batch: Batch = None,
    mean: Mean = "",
    std: Std = "",
    strict: Strict = False,
    seed: Seed = 0,
    device: OnDevice = None,
    as_json: Json = False,
) -> int:
    """Compile like `compile`, and measure, here or on boards, what makes each kernel fastest.

    Every measurement goes to the database at once: after Ctrl-C or a crash, the same command goes on from
    there.
    """
    from tvmq import cli_compile
    from tvmq.tune.options import Tune

    options = options_of(target, bits, ignore, requantize, observer, preset, strict, seed)
    options |= {"tune": Tune(trials=trials, minutes=minutes, database=database)}
    options |= {"device": device} if device else {}
    data = cli_compile.Data(calibration, samples, batch, mean, std)
    return cli_compile.compile_model(model, data, output, options, as_json=as_json)


@app.command()
def cost(
    model: Model,
    calibration: CalibrationData,
    target: Target = "native",
    bits: Annotated[
        str, typer.Option(help="Widths to price besides float and w8a8, with commas: w4a8,w3a8.")
    ] = "w4a8",
    threads: Threads = None,
    store: Annotated[
        Path | None,
        typer.Option(help="File of what was measured. Default: tvmq/costs.jsonl in the cache folder."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure nothing: use the store, predict or estimate the rest.")
    ] = False,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Price kernels as `tvmq tune` found them on this machine.")
    ] = False,
    samples: Samples = 16,
    batch: Batch = None,
    mean: Mean = "",
    std: Std = "",
    as_json: Json = False,
) -> int:
    """Show what every site would cost in float and in each width: ms, bytes, and where that is known from.

    Each kernel is timed once on this machine; all models share what was measured. Costs of a target that this
    machine cannot run are estimated from its profile.
    """
    from tvmq import cli_compile, cli_cost
    from tvmq.tune.options import Tune

    options: dict[str, object] = {"target": target, "bits": bits.split(","), "threads": threads}
    options |= {"store": store, "measure": not estimate, "tune": Tune(trials=0) if tuned else None}
    data = cli_compile.Data(calibration, samples, batch, mean, std)
    return cli_cost.cost_model(model, data, options, as_json=as_json)


@app.command()
def analyze(
    model: Model,
    calibration: CalibrationData,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write one page with plots of every site; needs nothing else."),
    ] = None,
    held_out: Annotated[
        str, typer.Option(help="Other typical inputs to measure on. Default: some of those of --calibration.")
    ] = "",
    bits: Bits = "8",
    ignore: Ignore = None,
    requantize: Rescaling = Requantize.POT,
    observer: Ranges = Observer.MSE,
    preset: Effort = Preset.DEFAULT,
    samples: Samples = 128,
    batch: Batch = None,
    mean: Mean = "",
    std: Std = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> int:
    """Show which sites lose most by quantization, and what would help; nothing is compiled."""
    from tvmq import cli_analyze, cli_compile

    options = quantizer_of(bits, ignore, requantize, observer, preset, seed)
    data = cli_compile.Data(calibration, samples, batch, mean, std)
    return cli_analyze.analyze_model(model, data, held_out, html, options, as_json=as_json)


@app.command()
def run(
    artifact: Artifact,
    input_file: Annotated[
        Path, typer.Option("--input", "-i", help="An .npy, an .npz with one array per input, or a photo.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write .npy, .npz or, for a map in [0, 1], .png.")
    ] = None,
    threads: Threads = None,
    mean: Mean = "",
    std: Std = "",
    as_json: Json = False,
) -> int:
    """Run an artifact on one input."""
    from tvmq import cli_artifact

    return cli_artifact.run(artifact, input_file, output, threads, (mean, std), as_json=as_json)


@app.command()
def bench(
    artifact: Artifact,
    threads: Threads = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs to measure.")] = 50,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time goes, kernel by kernel.")
    ] = False,
    device: OnDevice = None,
    as_json: Json = False,
) -> int:
    """Measure the latency of an artifact, here or on a board."""
    from tvmq import cli_artifact

    return cli_artifact.bench(artifact, threads, repeat, device, profile=profile, as_json=as_json)


@app.command()
def verify(
    artifact: Artifact,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Compare with the reference on this input."),
    ] = None,
    mean: Mean = "",
    std: Std = "",
    device: OnDevice = None,
    as_json: Json = False,
) -> int:
    """Check that an artifact computes, bit for bit, what the reference does."""
    from tvmq import cli_artifact

    return cli_artifact.verify(artifact, input_file, (mean, std), device, as_json=as_json)


@app.command()
def evaluate(
    artifact: Artifact,
    images: Annotated[
        Path, typer.Option("--images", help="A folder of photos, with one folder per class, as ImageNet has.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="A file of lines `NAME CLASS`, for photos that lie otherwise.")
    ] = None,
    float_model: Annotated[
        Path | None, typer.Option("--float", help="The .onnx or .pt2 it was made from, to compare with.")
    ] = None,
    threads: Threads = None,
    mean: Mean = "",
    std: Std = "",
    as_json: Json = False,
) -> int:
    """Tell how many labelled photos an artifact names right, and how far it is from float."""
    from tvmq import cli_evaluate

    scaling = (mean, std)
    return cli_evaluate.evaluate_artifact(
        artifact, images, labels, float_model, scaling, threads, as_json=as_json
    )


@app.command()
def inspect(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A .tvmq file. None of its code runs.")
    ],
    sites: Annotated[bool, typer.Option("--sites", help="List every site.")] = False,
    scales: Annotated[bool, typer.Option("--scales", help="List how every tensor is stored.")] = False,
    as_json: Json = False,
) -> int:
    """Show what an artifact is: inputs, target, coverage, recipe; --json has all of the manifest."""
    from tvmq import cli_artifact

    return cli_artifact.inspect(artifact, sites=sites, scales=scales, as_json=as_json)


@app.command()
def targets(as_json: Json = False) -> int:
    """List the machines that tvmq compiles for."""
    from tvmq import cli_environment

    return cli_environment.targets(as_json=as_json)


@app.command()
def doctor(as_json: Json = False) -> int:
    """Check this environment, and say what is missing and how to get it."""
    from tvmq import cli_environment

    return cli_environment.doctor(as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; whatever goes wrong becomes one sentence on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    kept = KEPT.get(given[0], NOTHING_WRITTEN)
    if any(word.startswith("--search-log") for word in given):
        kept = PLANS_KEPT
    interrupts: list[int] = []
    try:
        with noted(interrupts), told_warnings():
            code = typer.main.get_command(app).main(given, prog_name="tvmq", standalone_mode=False)
    except TvmqError as error:
        return refuse(given, type(error).__name__, str(error), error.exit_code)
    except typer.TyperException as error:
        said = error.format_message().rstrip(".").replace("Value error, ", "")  # as Enums begin
        return refuse(given, "UsageError", f"{said}. See `{_command_of(error)} --help`.", USAGE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return refuse(given, "UsageError", f"{name}{error.strerror or error}", USAGE)
    except MemoryError:
        return refuse(given, "MemoryError", "out of memory; use a machine with more, or a smaller model", 1)
    except Exception as error:
        if interrupts:
            return refuse(given, "KeyboardInterrupt", kept, INTERRUPTED)
        if os.environ.get("TVMQ_DEBUG"):
            raise
        said = " ".join(str(error).split())[:500]
        message = f"internal error, {type(error).__name__}: {said}; report it with what TVMQ_DEBUG=1 shows"
        return refuse(given, "InternalError", message, BUG)
    if code == INTERRUPTED:
        return refuse(given, "KeyboardInterrupt", kept, INTERRUPTED)
    return int(code or 0)


def _command_of(error: typer.TyperException) -> str:
    """Return the command that an error of usage is about."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "tvmq"


def run_and_exit() -> NoReturn:
    """Be the console script."""
    keep_stdout()
    leave(main())
