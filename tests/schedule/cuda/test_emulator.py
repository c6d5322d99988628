"""The emulated GPU sees what makes a kernel wrong on a real one though its numbers are right."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.schedule.cuda.emulator import ERRORS, ORDERS, launched, needs_emulator, shared_library
from tests.schedule.cuda.guarded import Guarded

BODIES = {
    "sound": "x[4 * blockIdx.x + threadIdx.x] += blockIdx.x;",
    "race_of_blocks": "x[threadIdx.x] = blockIdx.x;",
    "race_of_threads": "static int last; last = threadIdx.x; __syncthreads(); x[4 * blockIdx.x] = last;",
    "read_behind": "x[0] += x[8 + threadIdx.x];",
    "read_before": "x[0] += x[-1 - static_cast<int>(threadIdx.x)];",
    "misaligned": "*reinterpret_cast<long long*>(x + 1) = 0;",
    "shared": "x[0] = gpu::shared[64 + threadIdx.x];",
}
TEXT = "".join(f'extern "C" __global__ void {name}(int* x) {{ {body} }}\n' for name, body in BODIES.items())


def run(library: ctypes.CDLL, kernel: str, order: int, blocks: tuple[int, int, int] = (2, 1, 1)) -> object:
    """Return the eight numbers after a launch, or what went wrong."""
    x = Guarded(np.arange(8, dtype="int32"), at_end=order == 0)
    error = launched(library, kernel, [x.address], (*blocks, 4, 1, 1, 64), order)
    values = x.taken().tolist()
    return ERRORS[error] if error else values


@needs_emulator
def test_races_and_wrong_addresses_are_seen():
    library = ctypes.CDLL(str(shared_library(TEXT, (8, 0))))
    found = {name: [run(library, name, order) for order in ORDERS] for name in BODIES}
    assert found["sound"] == [[0, 1, 2, 3, 5, 6, 7, 8]] * 2
    assert found["race_of_blocks"][0] != found["race_of_blocks"][1]
    assert found["race_of_threads"][0] != found["race_of_threads"][1]
    assert ERRORS[700] in found["read_behind"]
    assert ERRORS[700] in found["read_before"]
    assert ERRORS[716] in found["misaligned"]
    assert found["shared"] == [ERRORS[700]] * 2
    assert run(library, "sound", 0, (1, 1 << 16, 1)) == ERRORS[9]


def test_what_is_written_beside_an_array_is_seen():
    array = Guarded(np.arange(5, dtype="uint8"), at_end=True)
    ctypes.c_ubyte.from_address(array.address + 5).value = 0
    with pytest.raises(AssertionError, match="behind the array"):
        array.taken()
