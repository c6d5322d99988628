"""How accurate a model is on labelled photos, and how far it is from its float version.

A folder of photos is labelled as ImageNet's are: one folder per class, and the classes' numbers are the order
of the folders' names, or the names themselves where all are numbers. Or a file says them, a line for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmq.errors import UsageError
from tvmq.images import IMAGENET, Preprocessing, load_image, photos_in
from tvmq.progress import Progress, silent
from tvmq.record import Record
from tvmq.spec import Array, TensorSpec

if TYPE_CHECKING:
    from tvmq.compiled import CompiledModel

NORMAL_95 = 1.959964  # standard deviations to each side that hold 95 % of a normal distribution
TOP = 5


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """A model's answers beside the float model's on the same inputs; percent or points, but the cosine."""

    agreement: float  # inputs whose class is the one that float finds
    cosine: float  # of the scores of all classes, mean over the inputs
    accuracy: float | None = None  # None, as the next three: the inputs have no labels
    drop: float | None = None  # of the accuracy against float
    low: float | None = None  # 95 % interval of the drop, from the paired differences
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation(Record):
    """What evaluate found, in percent of the photos."""

    photos: int
    classes: int  # that have photos; 0: the photos have no labels
    top1: float | None
    top5: float | None  # None: no labels, or the model tells fewer than 6 classes apart
    float_top1: float | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Photos:
    """Photos and the number of each one's class."""

    files: tuple[Path, ...]
    labels: Array | None  # int64 [N]; None: nobody knows

    def inputs(self, spec: TensorSpec, preprocessing: Preprocessing) -> Iterator[tuple[int, Array]]:
        """Yield how many photos a batch holds, and it in spec's shape, filled up with the last photo."""
        size = spec.shape[0]
        for start in range(0, len(self.files), size):
            batch = [load_image(path, spec, preprocessing) for path in self.files[start : start + size]]
            yield len(batch), np.stack(batch + batch[-1:] * (size - len(batch)))


def compare(scores: Array, exact: Array, labels: Array | None) -> Comparison:
    """Return how scores [N, classes] compare with those of the float model; labels: int64 [N]."""
    found, wanted = scores.argmax(1), exact.argmax(1)
    x, y = scores.astype(np.float64), exact.astype(np.float64)
    cosines = (x * y).sum(1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1e-30)
    close = Comparison(agreement=100 * float((found == wanted).mean()), cosine=float(cosines.mean()))
    if labels is None:
        return close
    lost = int(((wanted == labels) & (found != labels)).sum())
    won = int(((wanted != labels) & (found == labels)).sum())
    low, high = paired_interval(lost, won, len(labels))
    return replace(
        close,
        accuracy=100 * float((found == labels).mean()),
        drop=100 * (lost - won) / len(labels),
        low=100 * low,
        high=100 * high,
    )


def paired_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares of the same n inputs [Bonett & Price 2012].

    One input is counted as lost and one as won besides: where none is, few inputs still prove little.
    """
    lost_share, won_share = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = lost_share - won_share
    spread = NORMAL_95 * math.sqrt((lost_share + won_share - middle**2) / (n + 2))
    return max(middle - spread, -1.0), min(middle + spread, 1.0)


def evaluate(
    model: CompiledModel,
    images: str | Path,
    *,
    labels: str | Path | None = None,
    exact: Callable[[Array], Array] | None = None,
    preprocessing: Preprocessing | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Return how many photos a compiled model names right.

    images: a folder with one folder of photos per class, or, with labels, any folder. Beside exact it may
    also hold the photos themselves, which then have no labels.
    labels: a file of lines `NAME CLASS`: a photo's path in the folder and the number of its class.
    exact: the float model, for the same batches, to be compared with.
    preprocessing: of the photos; by default that of the calibration, or else ImageNet's.

    Raises UsageError for a model that takes no photos or gives no scores, and for labels that do not fit.
    """
    spec, classes = _photo_input(model.inputs), _scores(model.outputs)
    if labels:
        photos = _listed_photos(Path(images), Path(labels))
    else:
        photos = (exact and _bare_photos(Path(images))) or _sorted_photos(Path(images), classes)
    _check_labels(photos, classes, labels or images)
    found: list[Array] = []
    wanted: list[Array] = []
    done, total = 0, len(photos.files)
    progress("evaluate", 0, total)
    for count, batch in photos.inputs(spec, preprocessing or model.preprocessing or IMAGENET):
        found.append(np.asarray(model(batch))[:count])
        if exact is not None:
            wanted.append(np.asarray(exact(batch))[:count])
        done += count
        progress("evaluate", done, total)
    return _evaluation(np.concatenate(found), np.concatenate(wanted) if wanted else None, photos.labels)


def _check_labels(photos: Photos, classes: int, where: str | Path) -> None:
    if photos.labels is None:
        return
    first, last = photos.labels.min(), photos.labels.max()
    if not 0 <= first <= last < classes:
        raise UsageError(
            f"{where}: classes {first} to {last}, the model tells 0 to {classes - 1}; number them from 0 as "
            "the model does"
        )


def _evaluation(scores: Array, exact: Array | None, labels: Array | None) -> Evaluation:
    comparison = None if exact is None else compare(scores, exact, labels)
    if labels is None:
        return Evaluation(photos=len(scores), classes=0, top1=None, top5=None, comparison=comparison)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    few = scores.shape[1] <= TOP
    return Evaluation(
        photos=len(labels),
        classes=len(np.unique(labels)),
        top1=100 * float((best[:, 0] == labels).mean()),
        top5=None if few else 100 * float((best == labels[:, None]).any(1).mean()),
        float_top1=None if exact is None else 100 * float((exact.argmax(1) == labels).mean()),
        comparison=comparison,
    )


def _bare_photos(folder: Path) -> Photos | None:
    """Return the photos of a folder without folders."""
    if not folder.is_dir() or any(path.is_dir() and path.name[0] != "." for path in folder.iterdir()):
        return None
    files = photos_in(folder)
    return Photos(tuple(files), None) if files else None


def _sorted_photos(folder: Path, classes: int) -> Photos:
    """Return the photos of a folder of folders."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; one with a folder of photos per class is wanted")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    numbered = bool(names) and all(name.isdecimal() for name in names)
    if not numbered and len(names) != classes:
        raise UsageError(
            f"{folder}: {len(names)} folders, the model tells {classes} classes apart; a folder per class is "
            "wanted, or folders named by the classes' numbers, or a file of labels; beside the float model "
            "(--float) a folder of photos alone will do"
        )
    files, labels = [], []
    for place, name in enumerate(names):
        mine = photos_in(folder / name)
        files += mine
        labels += [int(name) if numbered else place] * len(mine)
    if not files:
        raise UsageError(f"{folder}: no photo in any of its folders; one with photos per class is wanted")
    return Photos(tuple(files), np.array(labels, np.int64))


def _listed_photos(folder: Path, labels: Path) -> Photos:
    """Return the photos that a file of labels names."""
    files, numbers = [], []
    for number, line in enumerate(labels.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, word = line.replace(",", " ").strip().rpartition(" ")
        if not name or not word.isdecimal():
            raise UsageError(f"{labels}:{number}: {line!r} is no photo and class; `cats/1.jpg 281` is wanted")
        files.append(folder / name.strip())
        numbers.append(int(word))
    if not files:
        raise UsageError(f"{labels}: names no photo; one line `NAME CLASS` for each is wanted")
    return Photos(tuple(files), np.array(numbers, np.int64))


def _photo_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 4 or spec.shape[1] not in (1, 3) or spec.dtype != "float32":
        raise UsageError(
            f"evaluate: the model takes {', '.join(map(str, inputs))}; photos feed a single float32 input "
            "[N, 1 or 3, H, W]"
        )
    return spec


def _scores(outputs: Sequence[Any]) -> int:
    shape = outputs[0].shape
    if len(outputs) != 1 or len(shape) != 2 or shape[1] < 2:
        raise UsageError(
            f"evaluate: the model gives {', '.join(map(str, outputs))}; one output [N, classes] is wanted"
        )
    return int(shape[1])
