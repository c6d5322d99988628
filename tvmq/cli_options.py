"""The arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Requantize(StrEnum):
    """How an int32 accumulator becomes an 8-bit value."""

    POT = "pot"
    FIXED_POINT = "fixed_point"


class Preset(StrEnum):
    """How much work goes into the numbers."""

    FAST = "fast"
    DEFAULT = "default"
    BEST = "best"


class Observer(StrEnum):
    """How the range of an activation is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    LP = "lp"
    KL = "kl"
    ACIQ = "aciq"
    COSINE = "cosine"
    SIMILARITY = "similarity"
    FISHER = "fisher"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A .tvmq file. Its code will run: trust it.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with. Default: all cores.")]
OnDevice = Annotated[
    str | None,
    typer.Option(
        "--device", help="tracker:HOST:PORT/KEY or rpc:HOST:PORT: a board to do it on; see `tvmq serve`."
    ),
]
Mean = Annotated[
    str,
    typer.Option(
        help="Mean of each channel of a photo, pixels in 0..1. Default: the artifact's own, else ImageNet's."
    ),
]
Std = Annotated[str, typer.Option(help="Standard deviation of each channel. Default: as for --mean.")]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .onnx file, or a .pt2 of torch.export.save.")]
CalibrationData = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="Typical inputs: a folder or glob of photos (shorter side to size / 0.875, centre cut out), or "
        "an .npy or .npz of samples [N, ...].",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write. Default: MODEL with suffix .tvmq.")
]
Target = Annotated[
    str, typer.Option(help="A profile's name (see `tvmq targets`), a profile file, or native: this CPU.")
]
Bits = Annotated[
    str,
    typer.Option(
        help="Bits of weights and activations: 3 to 8, or both as in w4a8; ends keep 8. auto: search."
    ),
]
MaxMs = Annotated[float | None, typer.Option("--max-latency-ms", help="With --bits auto: of one call.")]
MaxMb = Annotated[float | None, typer.Option("--max-size-mb", help="With --bits auto: of the artifact.")]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", help="With --bits auto: the fastest that drops no further."),
]
Minutes = Annotated[float | None, typer.Option("--minutes", help="With --bits auto: try plans for so long.")]
SearchLog = Annotated[
    Path | None,
    typer.Option("--search-log", help="With --bits auto: keep results here, and go on from those that are."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="Take bits and options from a file that --save-recipe wrote."),
]
SaveRecipe = Annotated[
    Path | None,
    typer.Option("--save-recipe", help="Write bits and options to a file, to edit and replay."),
]
Picture = Annotated[
    Path | None, typer.Option("--picture", help="With --bits auto: draw the plan, as .png, .svg or .html.")
]
MinCoverage = Annotated[
    float | None,
    typer.Option("--min-coverage", help="Refuse a smaller share of multiplications in integers, 0 to 1."),
]
Ignore = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Keep matching sites in float. May be repeated.")
]
Rescaling = Annotated[Requantize, typer.Option(help="Shift, or multiply and shift.")]
Effort = Annotated[Preset, typer.Option(help="Work on accuracy: seconds, minutes, or many minutes.")]
Ranges = Annotated[Observer, typer.Option(help="How activation ranges are chosen.")]
Samples = Annotated[
    int, typer.Option(min=2, help="Use at most this many calibration samples; 32 or more are good.")
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Samples in one call, of a model that leaves it open. Default: 1.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a model that would stay float in part.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def options_of(
    target: str,
    bits: str,
    ignore: list[str] | None,
    requantize: Requantize,
    observer: Observer,
    preset: Preset,
    strict: bool,
    seed: int,
) -> dict[str, Any]:
    """Return what tvmq.compile takes."""
    return {
        "target": target,
        "strict": strict,
        **quantizer_of(bits, ignore, requantize, observer, preset, seed),
    }


def quantizer_of(
    bits: str,
    ignore: list[str] | None,
    requantize: Requantize,
    observer: Observer,
    preset: Preset,
    seed: int,
) -> dict[str, Any]:
    """Return what tvmq.compile and tvmq.analyze take."""
    from tvmq.spec import Precision

    if bits != "auto":
        Precision.of(bits)  # what it refuses is said before any work
    return {
        "bits": bits,
        "ignored": tuple(ignore or ()),
        "requantize": requantize.value,
        "observer": observer.value,
        "preset": preset.value,
        "seed": seed,
    }
