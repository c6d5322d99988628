"""Run a compiled library with NumPy, TVM's runtime library and tvm-ffi.

The Python package tvm is not imported: it costs seconds and hundreds of megabytes, the runtime library in its
wheel neither.
"""

from __future__ import annotations

import bisect
import ctypes
import importlib.util
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmq.environment import allowed_cpus, default_threads, require_tvm
from tvmq.errors import ArtifactError, EnvironmentMismatchError, UsageError
from tvmq.record import Record
from tvmq.spec import COPY, Array, Built, SiteTrace

ALIGNMENT = 64  # bytes; generated code is told that every tensor but the inputs starts at a multiple of this
CPU_DEVICE, NAIVE_ALLOCATOR, POOLED_ALLOCATOR = 1, 1, 2  # DLPack's and the Relax VM's numbers
SHARE_ALL_CPUS = -3  # affinity mode: the workers and the caller may run on every listed CPU
RUNTIME_LIBRARY = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}.get(
    sys.platform, "libtvm_runtime.so"
)

_pool = threading.local()  # .threads: how many workers this thread's pool uses


@dataclass(frozen=True, slots=True)
class KernelTime(Record):
    """The shortest time that one kernel call of the model took."""

    name: str  # the site it computes, or the kernel's symbol and ordinal
    kernel: str  # symbol in the library
    us: float


class Program:
    """A loaded library and its constants. Calls from several threads take turns."""

    entry = "main"  # the function that a call runs

    def __init__(self, built: Built, *, threads: int | None = None) -> None:
        """Load the native code in built.library: this executes code that the library's author chose.

        Constants that start at a multiple of 64 bytes are used in place, the others copied.
        """
        self._ffi = self._runtime()
        self._module = load_library(self._ffi, built.library)
        self._kept = [aligned(constant.array) for constant in built.constants]
        self._params = self._ffi.Array([self._constant(array) for array in self._kept])
        self._staging = [aligned_empty(spec.shape, spec.dtype) for spec in built.inputs]
        self._staged = [self._ffi.from_dlpack(buffer) for buffer in self._staging]
        self._own = _Spans([*self._staging, *self._kept])
        self._outputs, self._sites = built.outputs, built.sites
        self._lock = threading.Lock()
        self._main = self._machine(POOLED_ALLOCATOR)[self.entry]
        self.threads = default_threads()
        if threads is not None:
            self.set_threads(threads)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Return main's outputs; arrays match built.inputs in shape and dtype (strides are free).

        Raises ArtifactError where the code wants other inputs or constants, or gives other outputs.
        """
        with self._lock:
            return self._call(self._main, arrays, self._outputs)

    def run_there(self, *values: Any) -> tuple[Any, ...]:
        """Return main's outputs where it computes; values lie there, or are arrays."""
        return self.run(*values)

    def trace(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the integer output of every site, in the order of built.sites."""
        with self._lock:
            # Every site's tensor lives at once: a pool would keep that memory for good.
            return self._call(self._machine(NAIVE_ALLOCATOR)["trace"], arrays, self._sites)

    def set_threads(self, threads: int) -> None:
        """Compute with this many threads from the next call on."""
        use_threads(threads)
        self.threads = threads

    def profile(self, *arrays: Array, repeat: int = 20) -> tuple[KernelTime, ...]:
        """Return the shortest time of each kernel call in `repeat` runs, in order of execution.

        The shortest, since the time slice of another program would count for the kernel that it hits. The
        clock's own cost is taken off: what the cheapest of the VM's own instructions seemed to take.
        """
        recorder = self._recorder()
        machine = self._machine(POOLED_ALLOCATOR)
        machine["set_instrument"](recorder)
        runs: list[list[KernelCall]] = []
        with self._lock:
            for _ in range(repeat + 1):
                recorder.calls = []
                self._call(machine["main"], arrays, self._outputs)
                runs.append(recorder.calls)
            names = self._site_names(arrays, runs[0])
        clock = recorder.cheapest if np.isfinite(recorder.cheapest) else 0.0
        seconds = (min(call.seconds for call in calls) for calls in zip(*runs[1:], strict=True))
        return tuple(
            KernelTime(name, call.symbol, 1e6 * max(spent - clock, 0.0))
            for name, call, spent in zip(names, runs[0], seconds, strict=True)
        )

    def resident(self, *arrays: Array) -> Callable[[], None] | None:
        """Return what computes main once more from these inputs without copying anything from or to a device.

        None where inputs and outputs need no copies.
        """
        return None

    def _runtime(self) -> Any:
        return load_runtime()

    def _constant(self, array: Array) -> Any:
        return self._ffi.from_dlpack(array)

    def _use_threads(self) -> None:
        use_threads(self.threads, at_most=True)

    def _recorder(self) -> Recorder:
        return Recorder()

    def _machine(self, allocator: int) -> Any:
        machine = self._module["vm_load_executable"]()
        machine["vm_initialization"](CPU_DEVICE, 0, allocator)
        return machine

    def _call(self, function: Any, arrays: Sequence[Array], wanted: Sequence[Any]) -> tuple[Array, ...]:
        tensors = self._tensors(function, arrays, wanted)
        return tuple(self._released(tensor, arrays) for tensor in tensors)

    def _tensors(self, function: Any, arrays: Sequence[Array], wanted: Sequence[Any]) -> list[Any]:
        """Return what function gives, one tensor for each description in wanted."""
        self._use_threads()
        arguments = [self._argument(i, array) for i, array in enumerate(arrays)]
        try:
            result = function(*arguments, self._params)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:  # TVM checks all it is given
            if self._is_of_device(error):
                raise
            why = str(error).partition("\n")[0]
            raise ArtifactError(
                f"program: its code does not take its own inputs and constants ({why}); compile it again"
            ) from error
        tensors = [result] if isinstance(result, self._ffi.Tensor) else list(result)
        if len(tensors) != len(wanted):
            raise ArtifactError(
                f"program: its code gives {len(tensors)} tensors where {len(wanted)} are described; "
                f"compile it again"
            )
        return tensors

    def _is_of_device(self, error: Exception) -> bool:
        """Whether not what it is given but a device makes generated code fail."""
        return False

    def _argument(self, index: int, array: Array) -> Any:
        """Return the array as it is where generated code can read it, else the staging buffer with a copy."""
        staging = self._staging[index]
        flags = array.flags
        fits = array.dtype == staging.dtype and array.shape == staging.shape
        if fits and flags.c_contiguous and flags.writeable:
            given = self._ffi.from_dlpack(array)
            if given.data_ptr() % array.itemsize == 0:  # array.ctypes.data would take 20 times as long
                return given
        np.copyto(staging, array, casting="no")
        return self._staged[index]

    def _released(self, tensor: Any, inputs: Sequence[Array]) -> Array:
        """Return an output that shares no memory with the program, nor with what the caller passed in.

        One may be an input or a constant passed through: a reshape is a view to the VM.
        """
        output: Array = np.from_dlpack(tensor)
        own = self._own.overlap(tensor.data_ptr(), output.nbytes)
        shared = own or any(np.may_share_memory(output, x) for x in inputs)
        return output.copy() if shared else output

    def _site_names(self, arrays: Sequence[Array], calls: Sequence[KernelCall]) -> list[str]:
        """Name the calls of main by site: whichever call of trace last wrote a site's tensor computes it."""
        recorder = self._recorder()
        machine = self._machine(NAIVE_ALLOCATOR)
        machine["set_instrument"](recorder)
        tensors = self._tensors(machine["trace"], arrays, self._sites)
        addresses = [tensor.data_ptr() for tensor in tensors]
        return name_calls(calls, recorder.calls, dict(zip(addresses, self._sites, strict=True)))


class _Spans:
    """The memory of some arrays; asked after every run, so the answer takes a bisection only."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays)
        self._starts, self._ends = [start for start, _ in spans], [end for _, end in spans]

    def overlap(self, start: int, nbytes: int) -> bool:
        """Whether any of the nbytes from address start lies in this memory."""
        before = bisect.bisect_left(self._starts, start + nbytes)
        return before > 0 and self._ends[before - 1] > start


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call that an instrument saw."""

    symbol: str
    seconds: float
    wrote: int  # address of the last tensor argument, which is the destination
    read: int = 0  # address of the first one

    @classmethod
    def of(cls, symbol: str, seconds: float, arguments: Sequence[Any]) -> KernelCall:
        """Return the call with these arguments."""
        addresses = [a.data_ptr() if hasattr(a, "data_ptr") else 0 for a in arguments] or [0]
        return cls(str(symbol), seconds, addresses[-1], addresses[0])


class Recorder:
    """The VM's instrument: called before and after every instruction."""

    def __init__(self) -> None:
        self.calls: list[KernelCall] = []
        self.cheapest = float("inf")  # seconds of the fastest instruction that is no kernel
        self.began = 0.0

    def __call__(self, _function: Any, symbol: str, before: bool, _result: Any, *args: Any) -> int:
        now = time.perf_counter()
        if not before and symbol.startswith("vm."):
            self.cheapest = min(self.cheapest, now - self.began)
        elif not before:
            self.calls.append(KernelCall.of(symbol, now - self.began, args))
        self.began = time.perf_counter()
        return 0


def name_calls(
    calls: Sequence[KernelCall], traced: Sequence[KernelCall], sites: dict[int, SiteTrace]
) -> list[str]:
    """Return a name for each call of main: its site's id, else `symbol.ordinal`; sites by addresses."""
    writer = {call.wrote: number for number, call in enumerate(traced)}  # the last one wins
    site_of = {writer[at]: site.id.removesuffix(COPY) for at, site in sites.items() if at in writer}
    symbols = {call.symbol for call in calls}
    for number, site in list(site_of.items()):
        if traced[number].symbol not in symbols:  # trace alone unpacks what a kernel has stored packed
            before = [n for n in range(number) if traced[n].wrote == traced[number].read]
            site_of.update({n: site for n in before[-1:] if n not in site_of})
    ordinal: dict[str, int] = {}
    known: dict[tuple[str, int], str] = {}
    for number, call in enumerate(traced):
        n = ordinal[call.symbol] = ordinal.get(call.symbol, -1) + 1
        if number in site_of:
            known[call.symbol, n] = site_of[number]
    counted: dict[str, int] = {}
    names = []
    for call in calls:
        n = counted[call.symbol] = counted.get(call.symbol, -1) + 1
        names.append(known.get((call.symbol, n), f"{call.symbol}.{n}"))
    return names


@cache
def load_runtime() -> Any:
    """Return the module tvm_ffi with TVM's runtime library loaded into the process.

    tvm_ffi imports torch if it can: over a second and 170 MB. Here it cannot, unless torch is imported
    already: tvmq hands it NumPy arrays only. Who hands it torch's dtypes directly imports torch before.
    """
    require_tvm()
    with _torch_hidden():
        import tvm_ffi

    if "tvm" not in sys.modules:
        ctypes.CDLL(str(runtime_library()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Make `import torch` fail for this thread's imports within the block, unless it is imported already."""
    if "torch" in sys.modules:
        yield
        return
    finder: Any = _TorchHider(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _TorchHider:
    def __init__(self, thread: int) -> None:
        self.thread = thread

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch is hidden by tvmq.runtime.load_runtime", name=name)


def runtime_library() -> Path:
    """Return the path of TVM's runtime library inside the installed wheel."""
    spec = importlib.util.find_spec("tvm")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "lib" / RUNTIME_LIBRARY
        if path.is_file():
            return path
    raise EnvironmentMismatchError(
        f"environment: {RUNTIME_LIBRARY} is missing from the installed apache-tvm, PyPI's wheel is wanted; "
        f"run `pip install --force-reinstall --no-deps apache-tvm`"
    )


def load_library(ffi: Any, library: bytes) -> Any:
    """Return the library as a module of tvm_ffi; it passes through a private temporary file."""
    handle, path = tempfile.mkstemp(prefix="tvmq-", suffix=".so")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(library)
        return ffi.load_module(path)
    except (OSError, RuntimeError) as error:
        raise EnvironmentMismatchError(
            f"runtime: the model's native library cannot be loaded from {tempfile.gettempdir()!r} ({error}); "
            f"set TMPDIR to a folder that allows execution"
        ) from error
    finally:
        os.unlink(path)


def use_threads(threads: int, *, at_most: bool = False, alone: bool = False) -> None:
    """Set the worker pool of the calling thread; TVM has one pool per calling thread.

    A pool's size is fixed by its first use, so call this before any other TVM code runs in the thread. With
    at_most a pool that came out smaller is accepted. A pool that is made alone has no idle worker for every
    other CPU, and binds its thread to one.
    """
    if getattr(_pool, "threads", None) == threads:
        return
    cpus = require_threads(threads)[: 1 if alone else None]
    ffi = load_runtime()
    # By default TVM binds workers, and the caller, to the first cores; here all may use what the process may.
    configure: Callable[..., None] = ffi.get_global_func("runtime.config_threadpool")
    configure(SHARE_ALL_CPUS, threads, [str(cpu) for cpu in cpus])
    got = int(ffi.get_global_func("runtime.NumThreads")())
    if got != threads and not at_most:
        raise UsageError(
            f"threads: {threads} given, but TVM ran earlier in this thread and made a pool of {got}; "
            f"set TVM_NUM_THREADS={threads} before the process starts"
        )
    _pool.threads = got


def require_threads(threads: int) -> Sequence[int]:
    """Return the CPUs of this process; UsageError where they are fewer than threads, or these none."""
    cpus = allowed_cpus()
    if not 1 <= threads <= len(cpus):
        raise UsageError(f"threads: {threads} given, 1 to {len(cpus)} is wanted (the CPUs of this process)")
    return cpus


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised array that starts at a multiple of ALIGNMENT."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def is_aligned(array: Array) -> bool:
    """Whether generated code can read array in place."""
    return bool(array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable)


def aligned(array: Array) -> Array:
    """Return array itself if generated code can read it in place, else a copy that can be."""
    if is_aligned(array):
        return array
    copy = aligned_empty(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy
