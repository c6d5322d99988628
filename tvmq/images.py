"""Model inputs from files: photos, or arrays saved by NumPy; outputs back to files.

A photo becomes an input as timm's evaluation does it: the shorter side to size / 0.875 (bicubic), the
centre cut out, pixels / 255, minus mean, divided by std, channels first. Orientation tags are not followed.
"""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.environment import INSTALL_PHOTOS
from tvmq.errors import CalibrationError, EnvironmentMismatchError, UsageError
from tvmq.new_file import write_atomically
from tvmq.record import Record
from tvmq.spec import Array, TensorSpec

Batch = tuple[Array, ...]  # one array per model input, in order

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP = 0.875
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


@dataclass(frozen=True, slots=True)
class Preprocessing(Record):
    """How pixels in [0, 1] become a model's numbers: (pixel - mean) / std, per channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise UsageError(
                f"preprocessing: mean {list(self.mean)} and std {list(self.std)} do not go together; "
                "one positive std per mean is wanted"
            )

    def __str__(self) -> str:
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"--mean {mean} --std {std}"


IMAGENET = Preprocessing()


def preprocessing_from_text(mean: str, std: str, default: Preprocessing = IMAGENET) -> Preprocessing:
    """Return what "0.5,0.5,0.5" means as mean and std; an empty one is the default's."""
    values = []
    for name, text, otherwise in (("mean", mean, default.mean), ("std", std, default.std)):
        try:
            values.append(tuple(float(part) for part in text.split(",")) if text else otherwise)
        except ValueError:
            raise UsageError(
                f"--{name}: {text!r} is not a list of numbers; one per channel is wanted, e.g. 0.5,0.5,0.5"
            ) from None
    return Preprocessing(*values)


@dataclass(frozen=True, slots=True)
class CalibrationFiles:
    """Batches read from files anew at every iteration, so that memory holds one batch."""

    inputs: tuple[TensorSpec, ...]
    found: int
    samples: int  # of those found, in full batches
    read: Callable[[int], Batch]  # sample number -> one array without batch axis per input
    prepared: str = ""  # how the inputs are made of photos
    preprocessing: Preprocessing | None = None  # of photos, kept in the artifact; None: the data is arrays

    def __len__(self) -> int:
        return self.samples // self.inputs[0].shape[0]

    def __str__(self) -> str:
        """Return how many samples are used, and what becomes of others."""
        left = self.found - self.samples
        if not left:
            return f"{self.samples} samples"
        does = "does" if left == 1 else "do"
        size = self.inputs[0].shape[0]
        return f"{self.samples} of {self.found} samples; {left} {does} not fill a batch of {size}"

    def __iter__(self) -> Iterator[Batch]:
        size = self.inputs[0].shape[0]
        for start in range(0, len(self) * size, size):
            rows = [self.read(start + i) for i in range(size)]
            yield tuple(np.stack(column) for column in zip(*rows, strict=True))


def load_calibration(
    path: str | Path,
    inputs: Sequence[TensorSpec],
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> CalibrationFiles:
    """Return the calibration batches at path: an .npy or .npz of samples [N, ...], or photos.

    Photos are a folder (searched through), a glob pattern or one file. With more than `limit` samples
    that many are taken at even distances; what does not fill a last batch is left out.
    preprocessing: of photos, ImageNet's by default; with arrays it is passed on, for photos to come.
    """
    if Path(path).suffix.lower() in ARRAY_SUFFIXES:
        count, read_sample = _array_samples(Path(path), inputs)
        prepared = ""
    else:
        files = image_files(path)
        spec = _image_input(inputs, str(path))
        count = len(files)
        preprocessing = scaling = preprocessing or IMAGENET

        def read_sample(index: int) -> Batch:
            return (load_image(files[index], spec, scaling),)

        prepared = str(preprocessing)
    size = inputs[0].shape[0]
    taken = _spread(count, limit)
    if len(taken) < size:
        raise CalibrationError(
            f"{path}: {count} samples do not fill one batch of {size}; "
            "give more samples, or a model with a smaller batch"
        )
    return CalibrationFiles(
        tuple(inputs),
        len(taken),
        len(taken) // size * size,
        lambda i: _finite(read_sample(taken[i]), path, taken[i]),
        prepared,
        preprocessing,
    )


def image_files(path: str | Path) -> list[Path]:
    """Return the photos at path (folder, glob pattern or file), sorted; at least one."""
    if Path(path).is_dir():
        found = photos_in(Path(path))
    else:
        found = sorted(Path(p) for p in glob.glob(os.path.expanduser(str(path)), recursive=True))
    if not found and not Path(path).exists() and not glob.has_magic(str(path)):
        raise CalibrationError(f"{path}: no such file or folder; give photos, an .npy or an .npz")
    if not found:
        raise CalibrationError(
            f"{path}: holds no photos ({', '.join(sorted(IMAGE_SUFFIXES))}) to calibrate on; "
            f"other data goes into one .npy or .npz file of samples [N, ...]"
        )
    return found


def photos_in(folder: Path) -> list[Path]:
    """Return the photos in a folder and those in it, sorted."""
    return sorted(path for path in folder.rglob("*") if _is_photo(path, folder))


def _is_photo(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)  # .venv is full of pictures
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not hidden


def load_image(path: Path, spec: TensorSpec, preprocessing: Preprocessing) -> Array:
    """Return the photo as float32 [C, H, W] for an input of shape [B, C, H, W]."""
    image_module = _pillow()
    _, channels, height, width = spec.shape
    if len(preprocessing.mean) != channels:
        raise UsageError(
            f"{path}: the model takes {channels} channels but mean has {len(preprocessing.mean)} values; "
            f"give {channels} of mean and std"
        )
    require_file(path)
    try:
        with image_module.open(path) as photo:
            image = photo.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a photo ({error}); remove or replace it") from error
    pixels = np.asarray(_centre_crop(image, height, width, image_module.Resampling.BICUBIC), np.float32)
    pixels = pixels.reshape(height, width, channels) / np.float32(255)
    normalised = (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(
        preprocessing.std, np.float32
    )
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def load_arrays(path: Path) -> Mapping[str, Array]:
    """Return the arrays of an .npz by name, or the one of an .npy under ""; large ones stay on disk."""
    require_file(path)
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.lib.format.open_memmap(path, mode="r")}
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path}: cannot be read as a NumPy file ({error}); write it with numpy.save"
        ) from error


def require_file(path: Path) -> None:
    """Raise UsageError where there is no file."""
    if not path.is_file():
        what = "is a folder, a file is wanted" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}; check the path")


def by_input(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], where: str) -> Batch:
    """Return the arrays in the order of inputs; a single one may have any name."""
    if len(inputs) == 1 and len(arrays) == 1:
        return tuple(arrays.values())
    names = [spec.name for spec in inputs]
    if sorted(names) != sorted(arrays):
        raise UsageError(f"{where}: holds arrays {sorted(arrays)}; the model takes {names}: name them so")
    return tuple(arrays[name] for name in names)


def save_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write outputs as .npz, a single one as .npy, or one of shape [1, 1, H, W] within [0, 1] as .png."""
    only = next(iter(outputs.values()))
    suffix = path.suffix.lower()
    if suffix == ".npz":
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **outputs))
    elif suffix == ".npy" and len(outputs) == 1:
        write_atomically(path, lambda file: np.save(file, only, allow_pickle=False))
    elif suffix == ".png" and len(outputs) == 1:
        _save_map(path, only)
    else:
        raise UsageError(
            f"{path}: cannot hold {len(outputs)} outputs; use .npz, or .npy or .png for a single one"
        )


def _save_map(path: Path, values: Array) -> None:
    if values.ndim != 4 or values.shape[:2] != (1, 1):
        raise UsageError(
            f"{path}: a .png takes an output of shape [1, 1, H, W], not {list(values.shape)}; use .npy"
        )
    if not (values.min() >= 0 and values.max() <= 1):
        raise UsageError(
            f"{path}: a .png takes values in [0, 1], not [{values.min():.3g}, {values.max():.3g}]; use .npy"
        )
    pixels = np.rint(values[0, 0] * 255).astype(np.uint8)
    image = _pillow().fromarray(pixels)
    write_atomically(path, lambda file: image.save(file, format="PNG"))


def _array_samples(path: Path, inputs: Sequence[TensorSpec]) -> tuple[int, Callable[[int], Batch]]:
    arrays = by_input(load_arrays(path), inputs, str(path))
    for spec, array in zip(inputs, arrays, strict=True):
        if array.shape[1:] != spec.shape[1:] or array.ndim == 0:
            wanted = ", ".join(str(n) for n in spec.shape[1:])
            raise CalibrationError(
                f"{path}: array of shape {list(array.shape)} for input {spec.name!r}; [N, {wanted}] is wanted"
            )
        if not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
            raise CalibrationError(
                f"{path}: array of dtype {array.dtype} for input {spec.name!r}; {spec.dtype} is wanted, "
                "preprocessed as for the float model"
            )
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise CalibrationError(f"{path}: arrays with {sorted(counts)} samples; every input wants as many")
    dtypes = [np.dtype(spec.dtype) for spec in inputs]
    return counts.pop(), lambda i: tuple(np.asarray(a[i], d) for a, d in zip(arrays, dtypes, strict=True))


def _image_input(inputs: Sequence[TensorSpec], where: str) -> TensorSpec:
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 4 or spec.shape[1] not in (1, 3) or spec.dtype != "float32":
        takes = ", ".join(f"{s.name}: {s.dtype} {list(s.shape)}" for s in inputs)
        raise CalibrationError(
            f"{where}: photos cannot feed a model that takes {takes}; give an .npz with one array per input"
        )
    return spec


def _finite(sample: Batch, path: str | Path, index: int) -> Batch:
    if not all(np.isfinite(array).all() for array in sample):
        raise CalibrationError(
            f"{path}: sample {index} holds NaN or Inf; remove it or mend the preprocessing"
        )
    return sample


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or count <= limit:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _centre_crop(image: Any, height: int, width: int, resample: Any) -> Any:
    # The factor that brings the crop to `CROP` of the photo along the side that is short of it.
    scale = max(height / image.height, width / image.width) / CROP
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, resample).crop((left, top, left + width, top + height))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"photos: Pillow is not installed; run {INSTALL_PHOTOS}, or give an .npy file"
        ) from error
    return Image
