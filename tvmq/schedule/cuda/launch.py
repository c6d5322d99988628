"""PrimFuncs that launch one device function of device/*.cuh: TVM sees grid, arguments and shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

Buffers = Mapping[str, tuple[tuple[int, ...], str]]
C_TYPES = {
    "uint8": "unsigned char",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "float32": "float",
}
SCHEDULED = "tvmq.scheduled"


@dataclass(frozen=True, slots=True)
class Call:
    """A call in a device function: its name with template arguments, and arguments.

    An argument is the name of a buffer, "shared", another call, a number, or None: a null pointer.
    """

    function: str
    arguments: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Launch:
    """How many blocks of how many threads, and the bytes of shared memory that a block asks for.

    Blocks have one number: in other dimensions a GPU takes 65535 of them, fewer than large batches have.
    """

    blocks: int
    threads: int
    shared_bytes: int = 0


def template(name: str, *arguments: Any) -> str:
    """Return a C++ name with template arguments: numbers, booleans and types."""
    words = (str(a).lower() if isinstance(a, bool) else str(a) for a in arguments)
    return f"tvmq::{name}<{', '.join(words)}>"


def device_prim_func(
    name: str, buffers: Buffers, results: Sequence[str], launch: Launch, call: Call
) -> tirx.PrimFunc:
    """Return the PrimFunc whose parameters are buffers, in their order, and whose threads make the call."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, SCHEDULED: True})
        parameters = {key: T.arg(key, T.buffer(*kind)) for key, kind in buffers.items()}
        block, thread = (
            T.launch_thread("blockIdx.x", launch.blocks),
            T.launch_thread("threadIdx.x", launch.threads),
        )
        with block, thread, T.sblock("kernel"):
            T.reads(*(_whole(buffer) for key, buffer in parameters.items() if key not in results))
            T.writes(*(_whole(parameters[key]) for key in results))
            if launch.shared_bytes:
                shared = T.sblock_alloc_buffer((launch.shared_bytes,), "uint8", scope="shared.dyn")
                parameters["shared"] = shared
            T.evaluate(_call(call, parameters))
    return builder.get()


def _call(call: Call, buffers: Mapping[str, Any]) -> Any:
    return tirx.call_extern("int32", call.function, *(_argument(a, buffers) for a in call.arguments))


def _argument(argument: Any, buffers: Mapping[str, Any]) -> Any:
    if isinstance(argument, Call):
        return _call(argument, buffers)
    if isinstance(argument, str):
        return buffers[argument].data
    return tirx.const(0 if argument is None else argument, "int32")


def _whole(buffer: Any) -> Any:
    return buffer[tuple(slice(0, int(extent)) for extent in buffer.shape)]
