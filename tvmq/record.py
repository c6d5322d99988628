"""Frozen dataclasses to JSON and back, strictly: what was not written by `to_json` is refused."""

from __future__ import annotations

import base64
import types
import typing
from collections.abc import Callable, Mapping
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
        try:
            record: Self = _decoder(cls)(data)  # type: ignore[arg-type]
        except _UnfitError as unfit:
            place = (where or cls.__name__) + "".join(reversed(unfit.path))
            raise UsageError(f"{place}: {unfit.problem}") from unfit.__cause__
        return record


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


Decoder = Callable[[Any], Any]


class _UnfitError(Exception):
    """A value that is not what was written; path grows from the inside out on its way up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []


@cache
def _decoder(hint: Any) -> Decoder:
    """Return the function that turns JSON data into a value of this type; it raises _UnfitError.

    Made once per type: an artifact's manifest holds thousands of values, and loading should not wait.
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _optional(hint)
    if origin is tuple:
        return _many(hint, tuple)
    if origin is frozenset:
        return _many(hint, frozenset)
    if origin is np.ndarray:
        return _array
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(typing.get_args(hint)[1])
    if isinstance(hint, type) and issubclass(hint, Record):
        return _record(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum(hint)
    return _plain(hint)


def _record(cls: type[Record]) -> Decoder:
    resolved = typing.get_type_hints(cls)
    decoders = {f.name: _decoder(resolved[f.name]) for f in fields(cls)}  # type: ignore[arg-type]

    def decode(data: Any) -> Record:
        if not isinstance(data, dict):
            raise _UnfitError(f"{_kind(data)} found, an object with {sorted(decoders)} is wanted")
        _check_keys(data, decoders)
        values = {}
        for name, decode_field in decoders.items():
            try:
                values[name] = decode_field(data[name])
            except _UnfitError as unfit:
                unfit.path.append(f".{name}")
                raise
        try:
            return cls(**values)
        except ValueError as error:
            raise _UnfitError(str(error)) from error

    return decode


def _check_keys(data: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if data.keys() == wanted.keys():
        return
    for key in data:
        if key not in wanted:
            raise _UnfitError(f"unknown key {key!r}; known keys: {sorted(wanted)}")
    missing = next(key for key in wanted if key not in data)
    raise _UnfitError(f"key {missing!r} is missing; wanted keys: {sorted(wanted)}")


def _optional(hint: Any) -> Decoder:
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    decode_value = _decoder(inner)
    return lambda value: None if value is None else decode_value(value)


def _many(hint: Any, kind: type) -> Decoder:
    decode_item, expect_list = _decoder(typing.get_args(hint)[0]), _plain(list)

    def decode(value: Any) -> Any:
        items = []
        for item in expect_list(value):
            try:
                items.append(decode_item(item))
            except _UnfitError as unfit:
                unfit.path.append(f"[{len(items)}]")
                raise
        return kind(items)

    return decode


def _mapping(item: Any) -> Decoder:
    expect_dict = _plain(dict)
    if item is Any:
        return expect_dict
    decode_item = _decoder(item)

    def decode(value: Any) -> dict[str, Any]:
        decoded = {}
        for name, each in expect_dict(value).items():
            try:
                decoded[name] = decode_item(each)
            except _UnfitError as unfit:
                unfit.path.append(f"[{name!r}]")
                raise
        return decoded

    return decode


def _array(value: Any) -> npt.NDArray[Any]:
    value = _plain(dict)(value)
    _check_keys(value, {"dtype": str, "shape": list, "base64": str})
    try:
        dtype = np.dtype(value["dtype"])
        stored = np.frombuffer(base64.b64decode(value["base64"], validate=True), dtype.newbyteorder("<"))
        return stored.astype(dtype).reshape(value["shape"])
    except (TypeError, ValueError) as error:
        raise _UnfitError(f"no array of {value['dtype']} {value['shape']}: {error}") from error


def _enum(kind: type[StrEnum]) -> Decoder:
    def decode(value: Any) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise _UnfitError(f"{value!r} found, one of {[m.value for m in kind]} is wanted") from None

    return decode


def _plain(kind: type) -> Decoder:
    def decode(value: Any) -> Any:
        # bool is an int to Python, not to a file format.
        if type(value) is kind or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        if kind is float and type(value) is int:
            return float(value)
        raise _UnfitError(f"{_kind(value)} found, {kind.__name__} is wanted")

    return decode


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, str | int | float) else name
