"""Frozen dataclasses to JSON and back, strictly: what was not written by `to_json` is refused."""

from __future__ import annotations

import base64
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from functools import cache
from typing import Any, Self, Union

import numpy as np
import numpy.typing as npt

from tvmq.errors import UsageError


class Record:
    """Base of the frozen dataclasses that are written to files.

    Fields may be str, int, float, bool, None, StrEnum, other records, tuples of these, mappings of names to
    them, sets of names, NumPy arrays (base64 of their bytes, little-endian), and Mapping[str, Any] for free
    JSON data.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, every field present."""
        return {f.name: _encode(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Any, where: str | None = None) -> Self:
        """Return the record in data; `where` names the place in the UsageError for anything unfit."""
        place = where or cls.__name__
        hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]
        if not isinstance(data, dict):
            raise UsageError(f"{place}: {_kind(data)} found, an object with {sorted(hints)} is wanted")
        _check_keys(data, hints, place)
        values = {name: _decode(data[name], hint, f"{place}.{name}") for name, hint in hints.items()}
        try:
            return cls(**values)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in fields(cls)}


def _check_keys(data: dict[str, Any], hints: dict[str, Any], place: str) -> None:
    for key in data:
        if key not in hints:
            raise UsageError(f"{place}: unknown key {key!r}; known keys: {sorted(hints)}")
    for key in hints:
        if key not in data:
            raise UsageError(f"{place}: key {key!r} is missing; wanted keys: {sorted(hints)}")


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        data = base64.b64encode(little.tobytes()).decode("ascii")
        return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": data}
    return value


def _decode(value: Any, hint: Any, place: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _decode_optional(value, hint, place)
    if origin is tuple:
        return _decode_tuple(value, typing.get_args(hint), place)
    if origin is frozenset:
        return frozenset(_decode_tuple(value, typing.get_args(hint), place))
    if origin is np.ndarray:
        return _decode_array(_expect(value, dict, place), place)
    if origin is not None and issubclass(origin, Mapping):
        return _decode_mapping(_expect(value, dict, place), typing.get_args(hint)[1], place)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value, place)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _decode_enum(value, hint, place)
    if hint is float and type(value) is int:
        return float(value)
    return _expect(value, hint, place)


def _decode_optional(value: Any, hint: Any, place: str) -> Any:
    if value is None:
        return None
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return _decode(value, inner, place)


def _decode_tuple(value: Any, args: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    items = _expect(value, list, place)
    return tuple(_decode(item, args[0], f"{place}[{i}]") for i, item in enumerate(items))


def _decode_mapping(value: dict[str, Any], item: Any, place: str) -> dict[str, Any]:
    if item is Any:
        return value
    return {name: _decode(each, item, f"{place}[{name!r}]") for name, each in value.items()}


def _decode_array(value: dict[str, Any], place: str) -> npt.NDArray[Any]:
    _check_keys(value, {"dtype": str, "shape": list, "base64": str}, place)
    try:
        dtype = np.dtype(value["dtype"])
        stored = np.frombuffer(base64.b64decode(value["base64"], validate=True), dtype.newbyteorder("<"))
        return stored.astype(dtype).reshape(value["shape"])
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: no array of {value['dtype']} {value['shape']}: {error}") from error


def _decode_enum(value: Any, hint: type[StrEnum], place: str) -> StrEnum:
    try:
        return hint(value)
    except ValueError:
        raise UsageError(f"{place}: {value!r} found, one of {[m.value for m in hint]} is wanted") from None


def _expect(value: Any, kind: type, place: str) -> Any:
    # bool is an int to Python, not to a file format.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{place}: {_kind(value)} found, {kind.__name__} is wanted")
    return value


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, str | int | float) else name
