"""What a kernel may ask of an NVIDIA GPU, by its compute capability."""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.target import TargetProfile

# Bytes of shared memory that one block may ask for: CUDA C++ Programming Guide, "Compute Capabilities".
SHARED_BYTES = {
    (6, 1): 48 << 10,
    (7, 0): 96 << 10,
    (7, 2): 96 << 10,
    (7, 5): 64 << 10,
    (8, 0): 99 << 10,  # of 163: what (8, 6) and (8, 9) have, which run its code, too
    (8, 6): 99 << 10,
    (8, 7): 163 << 10,
    (8, 9): 99 << 10,
    (9, 0): 227 << 10,
    (10, 0): 227 << 10,
    (10, 3): 227 << 10,
    (11, 0): 227 << 10,
    (12, 0): 99 << 10,
    (12, 1): 99 << 10,
}
LEAST_SHARED_BYTES = 48 << 10
DOTS, TENSOR_CORES, ASYNC_COPIES = (6, 1), (7, 5), (8, 0)  # the first that have int8 ones
NO_INT4 = (9, 0)  # tensor cores of Hopper and later multiply no 4 bits: H100 whitepaper, "H100 Tensor Core"


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One GPU as the choice of tiles sees it."""

    capability: tuple[int, int]
    processors: int
    macs_per_cycle: float  # int8, of one processor

    @classmethod
    def of(cls, profile: TargetProfile) -> GpuModel | None:
        """Return the GPU of a profile, None for a CPU or a GPU without dot products of bytes."""
        capability = profile.capability
        if capability is None or capability < DOTS:
            return None
        macs = max(kernel.macs_per_cycle for kernel in profile.kernels if kernel.weight == "int8")
        return cls(capability, profile.machine.processors or 1, macs)

    @property
    def shared_bytes(self) -> int:
        """Return how much shared memory a block may ask for."""
        return SHARED_BYTES.get(self.capability, LEAST_SHARED_BYTES)

    @property
    def tensor_cores(self) -> bool:
        """Whether it multiplies matrices of bytes."""
        return self.capability >= TENSOR_CORES

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Return which weights it multiplies as they lie in memory, narrow ones first."""
        return (4, 8) if TENSOR_CORES <= self.capability < NO_INT4 else (8,)

    @property
    def async_copies(self) -> bool:
        """Whether copies to shared memory need no registers and no waiting."""
        return self.capability >= ASYNC_COPIES
