"""A plan as a file that people read and edit: TOML, checked key by key, that compiles to the same bytes.

schema = 1
model = "5f0c..."                # of the model that it was made for; leave it out to use another

[options]                        # of tvmq.compile, but for those that name files, data and machines
preset = "default"

[sites]                          # by name or glob pattern; the last that matches counts
"*" = "w8a8"
"blocks.3.mlp.fc1" = { bits = "w4a8", why = "..." }
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tvmq.errors import UsageError
from tvmq.new_file import write_atomically
from tvmq.plan.cost_table import FLOAT, precision_name, precision_of
from tvmq.spec import Plan, Precision

SCHEMA = 1
# The options that change bytes, with their types. The target is the caller's: a recipe may move.
OPTIONS: Mapping[str, type] = {
    "ignored": list, "requantize": str, "observer": str, "preset": str, "seed": int, "threads": int,
}  # fmt: skip
HEAD = """\
# What tvmq compiles each site to. Edit it, and run it again: tvmq compile MODEL --recipe FILE
# bits: "w4a8" (weights of 4 bits, activations of 8) or "float"; names may be patterns ("blocks.3.*"), and of
# several that match the last counts.
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe file holds."""

    bits: Mapping[str, Precision | None]  # by site or pattern, in the file's order
    reasons: Mapping[str, str] = field(default_factory=dict)  # by site
    options: Mapping[str, Any] = field(default_factory=dict)  # of OPTIONS
    model: str | None = None  # hash of the canonical module

    @classmethod
    def of(cls, plan: Plan, options: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a plan; of options, those that recipes have."""
        kept = {name: options[name] for name in OPTIONS if name in options}
        bits = {site.site: site.precision for site in plan.sites}
        return cls(bits, {site.site: site.reason for site in plan.sites}, kept, plan.module_hash)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Return the recipe in a file; UsageError, with the place, for anything that is no recipe."""
        where = Path(path)
        try:
            data = tomllib.loads(where.read_text("utf-8"))
        except OSError as error:
            raise UsageError(
                f"{where}: cannot be read ({error.strerror}), wanted a recipe in TOML"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{where}: is no TOML ({error}); see the top of a recipe that tvmq wrote"
            ) from error
        return cls._checked(data, str(where))

    def save(self, path: str | Path) -> None:
        """Write the file; one that was there is replaced only by a whole one."""
        text = self.text().encode("utf-8")

        def write(file: IO[bytes]) -> None:
            file.write(text)

        write_atomically(Path(path), write)

    def text(self) -> str:
        """Return the TOML."""
        lines = [HEAD, f"schema = {SCHEMA}"]
        if self.model is not None:
            lines.append(f"model = {_quoted(self.model)}")
        lines += ["", "[options]", *(f"{name} = {_quoted(value)}" for name, value in self.options.items())]
        lines += ["", "[sites]"]
        for name, precision in self.bits.items():
            bits, why = _quoted(precision_name(precision)), self.reasons.get(name)
            value = bits if why is None else f"{{ bits = {bits}, why = {_quoted(why)} }}"
            lines.append(f"{_quoted(name)} = {value}")
        return "\n".join(lines) + "\n"

    @classmethod
    def _checked(cls, data: Mapping[str, Any], where: str) -> Recipe:
        _known(data, ("schema", "model", "options", "sites"), where)
        if "schema" not in data:
            raise UsageError(f"{where}: is no recipe, it has no schema; give what --save-recipe wrote")
        if data["schema"] != SCHEMA:
            raise UsageError(f"{where}: schema is {data['schema']!r}, {SCHEMA} is what this tvmq reads")
        _typed(data.get("model", ""), str, f"{where}: model")
        options = _typed(data.get("options", {}), dict, f"{where}: options")
        _known(options, tuple(OPTIONS), f"{where}: options")
        for name, value in options.items():
            _typed(value, OPTIONS[name], f"{where}: options.{name}")
        if not all(isinstance(pattern, str) for pattern in options.get("ignored", [])):
            raise UsageError(f"{where}: options.ignored: wanted a list of patterns in quotes")
        bits, reasons = {}, {}
        for name, value in _typed(data.get("sites", {}), dict, f"{where}: sites").items():
            place = f"{where}: sites.{name}"
            given = value if isinstance(value, dict) else {"bits": value}
            _known(given, ("bits", "why"), place)
            try:
                bits[name] = precision_of(str(_typed(given.get("bits"), str, f"{place}: bits")))
            except UsageError as error:
                raise UsageError(f'{place}: {error}, or "{FLOAT}"') from None
            if "why" in given:
                reasons[name] = _typed(given["why"], str, f"{place}: why")
        return cls(bits, reasons, options, data.get("model"))


def _known(data: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in data:
        if name not in names:
            raise UsageError(f"{where}: unknown key {name!r}; known keys: {', '.join(names)}")


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {str: "text in quotes", int: "a whole number", list: "a list", dict: "a table"}[kind]
        raise UsageError(f"{where}: is {value!r}, {wanted} is wanted")
    return value


def _quoted(value: Any) -> str:
    """Return a value in TOML, which has text as JSON has it, but for the one control that JSON leaves."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
