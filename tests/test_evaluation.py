"""Labelled photos, and how a model's answers compare with the float model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tvmq
from tvmq import cli_evaluate
from tvmq.errors import UsageError
from tvmq.evaluation import Evaluation, _sorted_photos, compare, evaluate, paired_interval
from tvmq.images import Preprocessing
from tvmq.spec import Array, TensorSpec

RNG = np.random.default_rng(0)
PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3)


class Reddest:
    """Tells 3 classes apart by which colour is the brightest; takes two photos at once."""

    preprocessing: Preprocessing | None = None
    inputs = (TensorSpec("x", (2, 3, 8, 8), "float32"),)
    outputs = (TensorSpec("y", (2, 3), "float32"),)

    def __call__(self, x: Array) -> Array:
        assert x.shape == (2, 3, 8, 8)
        return x.mean((2, 3))


class Wide(Reddest):
    """Six classes more, which are never the best."""

    outputs = (TensorSpec("y", (2, 9), "float32"),)

    def __call__(self, x: Array) -> Array:
        colours = x.mean((2, 3))
        return np.concatenate([colours, colours - 1, colours - 2], 1)


def photos(folder: Path, names: tuple[str, ...], counts: tuple[int, ...] = (2, 1, 2)) -> Path:
    """Write photos of which all but the last of every class are as the class says."""
    for colour, (name, count) in enumerate(zip(names, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixel = [20, 20, 20]
            pixel[(colour + (i == 1)) % 3] = 200
            Image.new("RGB", (9, 8), tuple(pixel)).save(folder / name / f"{i}.png")
    return folder


def one_hot(classes: Array) -> Array:
    return np.eye(10, dtype=np.float32)[classes]


def test_a_drop_is_measured_on_the_same_inputs():
    labels = np.arange(1000) % 10
    exact, found = labels.copy(), labels.copy()
    exact[:100] += 1  # float is wrong here, the other right on half of it
    found[:50] += 1
    found[100:170] += 1  # and wrong here
    seen = compare(one_hot(found % 10), one_hot(exact % 10), labels)
    assert seen.accuracy == pytest.approx(88)
    assert seen.drop == pytest.approx(2)
    assert seen.agreement == pytest.approx(88)
    assert seen.cosine == pytest.approx(0.88)
    # 70 lost and 50 won of 1000: the standard error of their mean.
    error = 100 * np.std([1] * 70 + [-1] * 50 + [0] * 880, ddof=1) / np.sqrt(1000)
    assert seen.high - seen.drop == pytest.approx(1.96 * error, rel=1e-2)
    assert seen.drop - seen.low == pytest.approx(1.96 * error, rel=1e-2)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_few_inputs_without_a_difference_prove_little(n: int):
    low, high = paired_interval(0, 0, n)
    assert -low == high > min(0.9, 2 / n)
    # A model that really loses the share `high` shows no loss on n inputs in less than one case in 5.
    assert high == 1 or (1 - high) ** n < 0.2


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.1, 0.02), (0.0, 0.05)])
def test_the_interval_covers_the_true_drop(lost: float, won: float):
    rng, n = np.random.default_rng(0), 60
    counts = rng.multinomial(n, [lost, won, 1 - lost - won], 2000)
    ends = [paired_interval(int(a), int(b), n) for a, b, _ in counts]
    assert np.mean([low <= lost - won <= high for low, high in ends]) > 0.93


def test_the_interval_is_what_a_bootstrap_finds():
    labels = RNG.integers(0, 10, 2000)
    exact = np.where(RNG.random(2000) < 0.2, (labels + 1) % 10, labels)
    found = np.where(RNG.random(2000) < 0.05, (labels + 2) % 10, exact)
    seen = compare(one_hot(found), one_hot(exact), labels)
    lost = 100.0 * ((exact == labels).astype(int) - (found == labels))
    means = [lost[RNG.integers(0, 2000, 2000)].mean() for _ in range(2000)]
    assert np.allclose([seen.low, seen.high], np.percentile(means, [2.5, 97.5]), atol=0.15)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path):
    folder = photos(tmp_path / "photos", ("apple", "grass", "sky"))
    seen = tvmq.evaluate(Reddest(), folder, preprocessing=PLAIN)
    assert seen == Evaluation(photos=5, classes=3, top1=pytest.approx(60), top5=None)


def test_photos_are_prepared_as_in_calibration(tmp_path: Path):
    folder = photos(tmp_path / "photos", ("apple", "grass", "sky"))
    model = Reddest()
    model.preprocessing = Preprocessing((0.0, 0.0, 1.0), (1.0,) * 3)  # blue is never the brightest
    assert evaluate(model, folder).top1 == pytest.approx(40)


def test_folders_named_by_numbers_may_be_some_of_the_classes(tmp_path: Path):
    folder = photos(tmp_path / "photos", ("00", "1", "8"), counts=(2, 1, 1))
    seen = evaluate(Wide(), folder, preprocessing=PLAIN)  # 8 is the third best, blue minus 2 the ninth of all
    assert (seen.photos, seen.classes, seen.top1) == (4, 3, pytest.approx(50))
    assert seen.top5 == pytest.approx(75)


def test_a_file_says_the_classes(tmp_path: Path):
    folder = photos(tmp_path / "photos", ("a", "b", "c"))
    labels = tmp_path / "labels.txt"
    labels.write_text("a/0.png 0\na/1.png, 1\n\nc/0.png 2\n")
    assert evaluate(Reddest(), folder, labels=labels, preprocessing=PLAIN).top1 == 100
    labels.write_text("a/0.png cat\n")
    with pytest.raises(UsageError, match=r"labels.txt:1: .* is no photo and class"):
        evaluate(Reddest(), folder, labels=labels)
    labels.write_text("a/0.png 3\n")
    with pytest.raises(UsageError, match="classes 3 to 3, the model tells 0 to 2"):
        evaluate(Reddest(), folder, labels=labels)


def test_float_is_asked_about_the_same_photos(tmp_path: Path):
    folder = photos(tmp_path / "photos", ("apple", "grass", "sky"))
    steps: list[tuple[str, int, int]] = []
    seen = evaluate(
        Reddest(),
        folder,
        exact=lambda x: np.roll(x.mean((2, 3)), 1, axis=1),
        preprocessing=PLAIN,
        progress=lambda *step: steps.append(step),
    )
    assert seen.float_top1 == 0
    assert (seen.comparison.drop, seen.comparison.agreement) == (pytest.approx(-60), 0)
    assert steps == [("evaluate", done, 5) for done in (0, 2, 4, 5)]


def test_photos_without_classes_tell_how_close_float_is(tmp_path: Path):
    (folder,) = photos(tmp_path, ("photos",), counts=(3,)).iterdir()
    seen = evaluate(Reddest(), folder, exact=lambda x: x.mean((2, 3)), preprocessing=PLAIN)
    assert (seen.photos, seen.classes, seen.top1, seen.float_top1) == (3, 0, None, None)
    assert (seen.comparison.agreement, seen.comparison.cosine) == (100, pytest.approx(1))
    assert seen.comparison.drop is None
    lines = cli_evaluate.described(seen)
    assert list(lines) == ["photos", "same class as float", "cosine to float's scores"]
    with pytest.raises(UsageError, match=r"0 folders, .*beside the float model \(--float\)"):
        evaluate(Reddest(), folder)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no such folder"):
        evaluate(Reddest(), tmp_path / "none")
    with pytest.raises(UsageError, match="2 folders, the model tells 3 classes apart"):
        evaluate(Reddest(), photos(tmp_path / "two", ("a", "b"), counts=(1, 1)))
    model = Reddest()
    model.outputs = (TensorSpec("y", (2, 3, 8), "float32"),)
    with pytest.raises(UsageError, match="one output"):
        evaluate(model, tmp_path)
    model.inputs = (TensorSpec("x", (2, 8), "int64"),)
    with pytest.raises(UsageError, match="photos feed a single float32 input"):
        evaluate(model, tmp_path)


def test_a_class_without_photos_keeps_its_number(tmp_path: Path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="no photo in any of its folders"):
        _sorted_photos(tmp_path, 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "0.png")
    assert _sorted_photos(tmp_path, 3).labels.tolist() == [2]
