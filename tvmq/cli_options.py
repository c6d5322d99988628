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
    str, typer.Option(help="Bits of weights and activations: 3 to 8, or both as in w4a8. Ends keep 8.")
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

    Precision.of(bits)  # what it refuses is said before any work
    return {
        "bits": bits,
        "ignored": tuple(ignore or ()),
        "requantize": requantize.value,
        "observer": observer.value,
        "preset": preset.value,
        "seed": seed,
    }
