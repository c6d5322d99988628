"""A sample input kept with a program, and the checksums of everything the program computes from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmq.spec import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One golden input. A float tensor is (codes + offset) * 2**exponent with uint8 codes, which is exact in
    float32, so every machine gets the same bits; any other tensor is its own codes.
    """

    codes: Array
    dtype: str
    exponent: int = 0
    offset: int = 0

    def value(self) -> Array:
        """Return the input."""
        return self._decoded(self.codes) if is_float(self.dtype) else self.codes

    def extremes(self) -> Array:
        """Return the smallest and the largest value of a float input; nothing of an empty one."""
        codes = self.codes
        return self._decoded(np.array([codes.min(), codes.max()] if codes.size else [], codes.dtype))

    def _decoded(self, codes: Array) -> Array:
        steps = codes.astype(np.float32) + np.float32(self.offset)
        value: Array = np.ldexp(steps, self.exponent).astype(self.dtype)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Inputs and the SHA-256 of each output and of each site's integer output."""

    inputs: tuple[Sample, ...]
    outputs: tuple[str, ...]
    sites: tuple[str, ...]


def is_float(dtype: str) -> bool:
    """Tell whether a tensor of this dtype is kept as uint8 codes."""
    return dtype.startswith("float")


def sample_of(array: Array) -> Sample:
    """Return the nearest representable sample; floats keep their range and 7 to 8 bits."""
    dtype = array.dtype.name
    if not is_float(dtype):
        return Sample(np.ascontiguousarray(array), dtype)
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    exponent = math.ceil(math.log2((high - low) / 254)) if high > low else 0
    offset = math.floor(math.ldexp(low, -exponent))
    codes = np.rint(np.ldexp(array.astype(np.float64), -exponent)) - offset
    return Sample(np.clip(codes, 0, 255).astype(np.uint8), dtype, exponent, offset)


def random_like(arrays: Sequence[Array]) -> list[Array]:
    """Return random arrays of the same shapes, dtypes and ranges, smallest to largest value; always the same.

    A model is verified on these and not on what it was calibrated with: calibration data may be photos of
    people or texts of customers, and an artifact, which others get, must not carry it.
    """
    random = np.random.default_rng(0)
    return [_random_array(random, array) for array in arrays]


def _random_array(random: np.random.Generator, array: Array) -> Array:
    if array.size == 0:
        return array.copy()
    values: Array
    if is_float(array.dtype.name):
        values = random.uniform(float(array.min()), float(array.max()), array.shape)
    else:
        kind = array.dtype.newbyteorder("=")
        values = random.integers(int(array.min()), int(array.max()), array.shape, kind, endpoint=True)
    return np.asarray(values, array.dtype)


def default_samples(specs: Sequence[TensorSpec]) -> tuple[Sample, ...]:
    """Return inputs for a model about which nothing is known: floats in [-2, 2), ones for everything else."""
    random = np.random.default_rng(0)
    samples = []
    for spec in specs:
        if is_float(spec.dtype):
            codes = random.integers(0, 256, spec.shape, np.uint8)
            samples.append(Sample(codes, spec.dtype, exponent=-6, offset=-128))
        else:
            samples.append(Sample(np.ones(spec.shape, spec.dtype), spec.dtype))
    return tuple(samples)


def checksum(array: Array) -> str:
    """Return the SHA-256 of dtype, shape and little-endian contents."""
    plain = np.ascontiguousarray(array)
    little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{plain.dtype.name}{list(array.shape)}".encode())
    digest.update(little.tobytes())
    return digest.hexdigest()


def checksums(arrays: Sequence[Array]) -> tuple[str, ...]:
    """Return the checksum of each array."""
    return tuple(checksum(array) for array in arrays)
