"""Calibration data and inputs from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvmq.errors import CalibrationError, UsageError
from tvmq.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    image_files,
    load_calibration,
    save_outputs,
)
from tvmq.spec import TensorSpec

PHOTO_INPUT = (TensorSpec("x", (1, 3, 28, 28), "float32"),)
VECTOR_INPUT = (TensorSpec("x", (2, 4), "float32"),)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, size in enumerate([(64, 32), (32, 64), (40, 40)]):
        Image.new("RGB", size, (255, 0, 51)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a photo")
    return tmp_path


def test_a_flat_photo_becomes_its_normalised_colour(photos: Path):
    batches = load_calibration(photos, PHOTO_INPUT)
    assert len(batches) == 3
    (x,) = next(iter(batches))
    assert (x.shape, x.dtype) == ((1, 3, 28, 28), np.float32)
    colour = (np.array([1.0, 0.0, 0.2]) - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(x, np.broadcast_to(colour[None, :, None, None], x.shape), atol=1e-6)


def test_the_centre_of_the_shorter_side_is_kept(tmp_path: Path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 34:62] = 255  # within the central 28 of 32 columns that the crop keeps, but for one at each end
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    plain = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    ((x,),) = load_calibration(tmp_path, PHOTO_INPUT, preprocessing=plain)
    np.testing.assert_array_equal(x, 1.0)


def test_batches_can_be_read_again_and_are_spread_over_the_data(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float64).reshape(10, 4))
    batches = load_calibration(tmp_path / "x.npy", VECTOR_INPUT, limit=5)
    first, again = [b[0] for b in batches], [b[0] for b in batches]
    assert [x[:, 0].tolist() for x in first] == [[0.0, 8.0], [16.0, 24.0]]
    assert first[0].dtype == np.float32
    np.testing.assert_array_equal(first, again)


def test_what_does_not_fill_a_batch_is_told(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((5, 4), np.float32))
    batches = load_calibration(tmp_path / "x.npy", VECTOR_INPUT)
    assert (batches.samples, batches.found, len(batches)) == (4, 5, 2)
    assert str(batches) == "4 of 5 samples; 1 does not fill a batch of 2"
    assert str(load_calibration(tmp_path / "x.npy", VECTOR_INPUT, limit=4)) == "4 samples"


def test_named_inputs_come_in_the_models_order(tmp_path: Path):
    inputs = (TensorSpec("ids", (1, 3), "int64"), TensorSpec("mask", (1, 3), "int64"))
    np.savez(tmp_path / "x.npz", mask=np.ones((2, 3), np.int64), ids=np.zeros((2, 3), np.int32))
    ids, mask = next(iter(load_calibration(tmp_path / "x.npz", inputs)))
    assert (ids.max(), mask.min(), ids.dtype) == (0, 1, np.int64)
    with pytest.raises(UsageError, match=r"holds arrays \['ids', 'mask'\]; the model takes \['a', 'b'\]"):
        load_calibration(
            tmp_path / "x.npz",
            tuple(TensorSpec(n, s.shape, s.dtype) for n, s in zip("ab", inputs, strict=True)),
        )


def test_unusable_data_gets_a_sentence(photos: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CalibrationError, match="holds no photos"):
        load_calibration(empty, PHOTO_INPUT)
    with pytest.raises(CalibrationError, match="no such file or folder"):
        load_calibration(tmp_path / "absent", PHOTO_INPUT)
    with pytest.raises(CalibrationError, match="photos cannot feed a model that takes x: float32"):
        load_calibration(photos, VECTOR_INPUT)
    with pytest.raises(CalibrationError, match="3 samples do not fill one batch of 4"):
        load_calibration(photos, (TensorSpec("x", (4, 3, 28, 28), "float32"),))
    (photos / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UsageError, match=r"1\.png: cannot be read as a photo"):
        list(load_calibration(photos, PHOTO_INPUT))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3), np.float32), r"shape \[5, 3\] for input 'x'; \[N, 4\] is wanted"),
        (np.zeros((5, 4), np.complex64), "dtype complex64 for input 'x'; float32 is wanted"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), "sample 1 holds NaN or Inf"),
    ],
)
def test_unusable_arrays_get_a_sentence(tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(CalibrationError, match=message):
        list(load_calibration(tmp_path / "x.npy", VECTOR_INPUT))


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_broken_numpy_file_gets_a_sentence(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a NumPy file"):
        load_calibration(path, VECTOR_INPUT)


def test_a_glob_is_a_list_of_photos(photos: Path):
    assert [p.name for p in image_files(f"{photos}/[01].png")] == ["0.png", "1.png"]


def test_outputs_are_written_whole_or_not_at_all(tmp_path: Path):
    ramp = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 1, 2, 3)
    save_outputs(tmp_path / "y.npy", {"y": ramp})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), ramp)
    save_outputs(tmp_path / "y.npz", {"y": ramp, "z": ramp})
    assert sorted(np.load(tmp_path / "y.npz")) == ["y", "z"]
    save_outputs(tmp_path / "y.png", {"y": ramp})
    assert np.asarray(Image.open(tmp_path / "y.png")).tolist() == [[0, 51, 102], [153, 204, 255]]
    with pytest.raises(UsageError, match=r"values in \[0, 1\], not \[0, 2\]"):
        save_outputs(tmp_path / "bad.png", {"y": ramp * 2})
    with pytest.raises(UsageError, match="cannot hold 2 outputs"):
        save_outputs(tmp_path / "bad.npy", {"y": ramp, "z": ramp})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        save_outputs(tmp_path / "bad.npy", {"y": np.array(None)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["y.npy", "y.npz", "y.png"]


def test_photos_in_hidden_folders_are_not_the_users(tmp_path: Path):
    for folder in ("class_a", ".venv"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "1.png")
    assert image_files(tmp_path) == [tmp_path / "class_a" / "1.png"]
