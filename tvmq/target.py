"""What a machine can do: its TVM target, the CPU features its code needs, and the products it multiplies.

A profile is one short TOML file. Which precisions a site may take follows from the kernels listed there, so
no table says what an operator may be on a machine. CPU features are spelt as Linux spells them
(`/proc/cpuinfo`), whatever LLVM calls them: an artifact is checked against the running machine.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tvmq.cpu_names import (
    ARCHITECTURES,
    UnknownCpuNameError,
    architecture_named,
    architecture_of,
    features_of,
    linux_features,
)
from tvmq.environment import cpu_features
from tvmq.errors import EnvironmentMismatchError, UsageError
from tvmq.gpu import CUDA, capability_of, features_of_arch

SCHEMA = 1
NATIVE = "native"
DTYPES = ("float32", "int8", "uint8", "int16", "int32")
PACKED = tuple(f"int{bits}" for bits in (2, 3, 4, 5, 6))  # of weights, which share bytes in memory

TargetValue = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One product the machine multiplies natively, on one core."""

    activation: str  # dtypes, see DTYPES
    weight: str  # or one of PACKED; a profile's file may list several
    accumulator: str
    macs_per_cycle: float
    source: str  # where macs_per_cycle comes from
    intrinsic: str | None = None  # name of tvmq's tensor intrinsic; None: left to LLVM


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Numbers of one core and its memory."""

    clock_ghz: float
    dram_gb_per_s: float
    l2_bytes: int
    source: str
    l3_bytes: int | None = None  # shared by cores; the rest as `scripts/machine.sh` measures it, on one core
    l1_gb_per_s: float | None = None
    l2_gb_per_s: float | None = None
    l3_gb_per_s: float | None = None
    processors: int | None = None  # of a GPU, each of which is a "core" here


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetProfile:
    """A machine that tvmq compiles for."""

    name: str
    summary: str  # one line for `tvmq targets`
    tvm_target: Mapping[str, TargetValue] = field(hash=False)  # what tvm.target.Target takes
    features: frozenset[str]  # Linux names of the CPU features the code needs; of a GPU's, see tvmq.gpu
    machine: Machine
    kernels: tuple[Kernel, ...]  # native first, a float32 fallback last
    aliases: tuple[str, ...] = ()
    automatic: bool = True  # whether "native" and tvm Targets may come to mean it; else only its name does

    @property
    def architecture(self) -> str:
        """Return one of cpu_names.ARCHITECTURES; of a GPU, that of the CPU beside it."""
        return architecture_of(self.tvm_target)

    @property
    def capability(self) -> tuple[int, int] | None:
        """Return the compute capability of the GPU that computes, (8, 7) for sm_87; None for a CPU."""
        return capability_of(str(self.tvm_target["arch"])) if self.tvm_target["kind"] == CUDA else None

    def missing(self, available: Iterable[str]) -> tuple[str, ...]:
        """Return the features that the code needs and `available` lacks, sorted."""
        return tuple(sorted(self.features - frozenset(available)))

    def units(self, threads: int) -> int:
        """Return how many cores compute at once: a GPU's processors, or so many threads' of a CPU."""
        return self.machine.processors or threads

    def tvm(self) -> Any:
        """Return the tvm.target.Target; imports TVM."""
        from tvm.target import Target

        config = {k: list(v) if isinstance(v, tuple) else v for k, v in self.tvm_target.items()}
        if config["kind"] != CUDA:
            return Target(config)
        host = {"kind": "llvm", **{k: v for k, v in config.items() if k not in ("kind", "arch")}}
        return Target({"kind": CUDA, "arch": config["arch"], "host": host})

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-ready data, in the shape of its file."""
        kernels = [{k: v for k, v in asdict(kernel).items() if v is not None} for kernel in self.kernels]
        return {
            "schema": SCHEMA,
            "name": self.name,
            "summary": self.summary,
            "aliases": list(self.aliases),
            "automatic": self.automatic,
            "requires": sorted(self.features),
            "tvm_target": {k: list(v) if isinstance(v, tuple) else v for k, v in self.tvm_target.items()},
            "machine": {k: v for k, v in asdict(self.machine).items() if v is not None},
            "kernel": kernels,
        }

    def to_toml(self) -> str:
        """Return a profile file that parses to an equal profile; artifacts keep it."""
        data = self.to_dict()
        lines = _toml_lines({k: v for k, v in data.items() if k not in ("tvm_target", "machine", "kernel")})
        for table in ("tvm_target", "machine"):
            lines += ["", f"[{table}]", *_toml_lines(data[table])]
        for kernel in data["kernel"]:
            lines += ["", "[[kernel]]", *_toml_lines(kernel)]
        return "\n".join(lines) + "\n"


def load_profile(spec: Any) -> TargetProfile:
    """Return the profile that spec means.

    spec is a name or an alias of a built-in profile, "native", a path to a profile file, or a
    tvm.target.Target of kind llvm, which gets the kernels of the best built-in profile it covers.
    """
    if isinstance(spec, TargetProfile):
        return spec
    if hasattr(spec, "kind") and hasattr(spec, "export"):
        return profile_of_target(spec)
    if isinstance(spec, os.PathLike) or (isinstance(spec, str) and spec.endswith(".toml")):
        return _read(Path(spec))
    if spec == NATIVE:
        return native_profile()
    known = {name: profile for profile in builtin_profiles() for name in (profile.name, *profile.aliases)}
    if isinstance(spec, str) and spec in known:
        return known[spec]
    names = sorted([*known, NATIVE])
    raise UsageError(
        f"target: unknown target {spec!r}{did_you_mean(str(spec), names)}; "
        f"known targets: {', '.join(names)}; or give the path of a profile file (.toml)"
    )


def native_profile(available: frozenset[str] | None = None) -> TargetProfile:
    """Return the built-in profile that asks most of this CPU (or of one with these features)."""
    features = cpu_features() if available is None else available
    return _best(architecture_named(platform.machine()), features, "this machine")


@cache
def builtin_profiles() -> tuple[TargetProfile, ...]:
    """Return the profiles that come with tvmq; within an architecture the most demanding first."""
    files = [entry for entry in _profile_folder().iterdir() if entry.name.endswith(".toml")]
    profiles = [parse_profile(entry.read_text(encoding="utf-8"), entry.name) for entry in files]
    return tuple(
        sorted(profiles, key=lambda p: (-ARCHITECTURES.index(p.architecture), -len(p.features), p.name))
    )


def profile_of_target(target: Any) -> TargetProfile:
    """Wrap a tvm.target.Target of kind llvm."""
    from tvm.target import codegen

    exported = dict(target.export())
    if exported.get("kind") != "llvm":
        raise UsageError(
            f"target: a tvm Target of kind {exported.get('kind')!r} is not supported; "
            f"use one of kind 'llvm' or a profile name (see `tvmq targets`)"
        )
    given = {key: value for key, value in exported.items() if key not in ("tag", "keys") and value}
    given.setdefault("mtriple", str(codegen.llvm_get_system_triple()))
    config = _target_table(given, "target")
    architecture = architecture_of(config)
    names = (str(name) for name in codegen.llvm_get_cpu_features(target))
    features = linux_features(names, architecture)
    base = _best(architecture, features, "the given tvm Target")
    return replace(
        base,
        name=f"{base.name}+tvm_target",
        summary=f"a tvm Target given by the user, with the kernels of {base.name}",
        aliases=(),
        tvm_target=config,
        features=features,
    )


def parse_profile(text: str, where: str) -> TargetProfile:
    """Return the profile in TOML text; `where` names the file in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not a TOML file ({error}); see target_profiles/ for examples") from error
    _check_keys(data, _PROFILE_KEYS, where)
    if data["schema"] != SCHEMA:
        raise UsageError(f"{where}: schema {data['schema']!r} is not known; this tvmq reads schema {SCHEMA}")
    config = _target_table(data["tvm_target"], where)
    _check_keys(data["machine"], _MACHINE_KEYS, f"{where}: machine")
    return TargetProfile(
        name=data["name"],
        summary=data["summary"],
        aliases=tuple(data.get("aliases", ())),
        automatic=data.get("automatic", True),
        tvm_target=config,
        features=_features(config, data.get("requires"), where),
        machine=Machine(**data["machine"]),
        kernels=tuple(
            kernel
            for i, row in enumerate(data["kernel"])
            for kernel in _kernels(row, f"{where}: kernel[{i}]")
        ),
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for a near match, else ""."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


# Key -> (type, is required)
_Keys = Mapping[str, tuple[type | tuple[type, ...], bool]]
_PROFILE_KEYS: _Keys = {
    "schema": (int, True),
    "name": (str, True),
    "summary": (str, True),
    "aliases": (list, False),
    "automatic": (bool, False),
    "requires": (list, False),
    "tvm_target": (dict, True),
    "machine": (dict, True),
    "kernel": (list, True),
}
_MACHINE_KEYS: _Keys = {
    "clock_ghz": ((int, float), True),
    "dram_gb_per_s": ((int, float), True),
    "l2_bytes": (int, True),
    "source": (str, True),
    "l3_bytes": (int, False),
    "l1_gb_per_s": ((int, float), False),
    "l2_gb_per_s": ((int, float), False),
    "l3_gb_per_s": ((int, float), False),
    "processors": (int, False),
}
_KERNEL_KEYS: _Keys = {
    "activation": (str, True),
    "weight": ((str, list), True),
    "accumulator": (str, True),
    "macs_per_cycle": ((int, float), True),
    "source": (str, True),
    "intrinsic": (str, False),
}


def _check_keys(table: Any, keys: _Keys, where: str) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {table!r} is not a table; known keys: {sorted(keys)}")
    for key, value in table.items():
        if key not in keys:
            raise UsageError(
                f"{where}: unknown key {key!r}{did_you_mean(key, keys)}; known keys: {sorted(keys)}"
            )
        if not isinstance(value, keys[key][0]) or isinstance(value, bool) != (keys[key][0] is bool):
            raise UsageError(f"{where}: {key} = {value!r} has the wrong type; see target_profiles/")
    missing = sorted(key for key, (_, required) in keys.items() if required and key not in table)
    if missing:
        raise UsageError(f"{where}: key {missing[0]!r} is missing; a profile needs {missing}")


def _kernels(row: Any, where: str) -> list[Kernel]:
    """Return one kernel for each dtype of weights that the row names."""
    _check_keys(row, _KERNEL_KEYS, where)
    weights = row["weight"] if isinstance(row["weight"], list) else [row["weight"]]
    named = [("activation", row["activation"], DTYPES), ("accumulator", row["accumulator"], DTYPES)]
    for key, value, known in [*named, *(("weight", weight, (*DTYPES, *PACKED)) for weight in weights)]:
        if value not in known:
            raise UsageError(f"{where}: {key} = {value!r} is not a dtype of tvmq; known: {list(known)}")
    return [Kernel(**{**row, "weight": weight}) for weight in weights]


def _target_table(table: Mapping[str, Any], where: str) -> Mapping[str, TargetValue]:
    values: dict[str, TargetValue] = {}
    for key, value in table.items():
        if isinstance(value, str | int | float | bool):
            values[str(key)] = value
        elif isinstance(value, Sequence) and all(isinstance(v, str) for v in value):  # list, or TVM's Array
            values[str(key)] = tuple(str(v) for v in value)
        else:
            raise UsageError(f"{where}: tvm_target.{key} = {value!r}; a value or a list of strings is wanted")
    if values.get("kind") not in ("llvm", CUDA):
        raise UsageError(f"{where}: tvm_target.kind is {values.get('kind')!r}; 'llvm' or 'cuda' is wanted")
    arch = values.get("arch")
    if values["kind"] == CUDA and not (isinstance(arch, str) and re.fullmatch(r"sm_\d{2,3}", arch)):
        raise UsageError(f"{where}: tvm_target.arch is {arch!r}; the GPU's is wanted, as in 'sm_87'")
    if architecture_of(values) not in ARCHITECTURES:
        raise UsageError(
            f"{where}: tvm_target.mtriple is {values.get('mtriple')!r}; "
            f"one that starts with {' or '.join(ARCHITECTURES)} is wanted"
        )
    return MappingProxyType(values)


def _features(config: Mapping[str, TargetValue], requires: list[str] | None, where: str) -> frozenset[str]:
    if requires is not None:
        return frozenset(requires)
    attributes = config.get("mattr", ())
    assert isinstance(attributes, tuple)
    device = features_of_arch(str(config["arch"])) if config["kind"] == CUDA else frozenset[str]()
    try:
        return features_of(str(config.get("mcpu", "")), attributes) | device
    except UnknownCpuNameError as error:
        raise UsageError(
            f"{where}: tvmq does not know the CPU features of {error.name!r}"
            f"{did_you_mean(error.name, error.known)}; "
            f"list them as requires = [...], spelt as in /proc/cpuinfo"
        ) from error


def _best(architecture: str, features: frozenset[str], who: str) -> TargetProfile:
    candidates = [p for p in builtin_profiles() if p.architecture == architecture and p.automatic]
    for profile in candidates:
        if not profile.missing(features):
            return profile
    if not candidates:
        raise EnvironmentMismatchError(
            f"target: no profile for {architecture!r}; tvmq compiles for {', '.join(ARCHITECTURES)}"
        )
    least = candidates[-1]
    raise EnvironmentMismatchError(
        f"target: {who} lacks {', '.join(least.missing(features))}, which even {least.name!r} needs; "
        f"write a profile file for it (see CONTRIBUTING.md)"
    )


def _read(path: Path) -> TargetProfile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a target profile ({error})") from error
    return parse_profile(text, path.name)


def _profile_folder() -> Traversable:
    # In a wheel the folder lies inside the package; in a checkout it is the package's neighbour.
    inside = resources.files("tvmq").joinpath("target_profiles")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "target_profiles"


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers and lists of them are also TOML's.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
