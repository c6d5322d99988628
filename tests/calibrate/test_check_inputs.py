"""Each finding fires on samples made wrong, and none on right ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from tvmq.calibrate.check_inputs import InputCheck, data_findings, table_rows
from tvmq.calibrate.findings import Finding, Kind
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.spec import TensorSpec

IMAGE = (TensorSpec("image", (1, 3, 32, 32), "float32"),)
IDS = (TensorSpec("ids", (1, 16), "int64"), TensorSpec("mask", (1, 16), "int64"))


def found(
    specs: tuple[TensorSpec, ...],
    samples: list[tuple[np.ndarray, ...]],
    tables: Mapping[str, int] | None = None,
) -> list[Finding]:
    check = InputCheck(specs, tables or {})
    for sample in samples:
        check.update([torch.from_numpy(array[None]) for array in sample])
    return list(check.findings())


def images(count: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 32, 32), np.float32) for _ in range(count)]


def sentences(count: int = 8, words: int = 1000) -> list[tuple[np.ndarray, ...]]:
    """Return ids padded with 0, of 5 words and more, and their masks."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        length = int(rng.integers(5, 17))
        ids = np.zeros(16, np.int64)
        ids[:length] = rng.integers(1, words, length)
        rows.append((ids, (np.arange(16) < length).astype(np.int64)))
    return rows


def test_right_samples_raise_no_doubt():
    assert found(IMAGE, [(x,) for x in images()]) == []
    assert found(IDS, sentences(), {"ids": 1000}) == []
    one_twice = images(32)
    one_twice[5] = one_twice[9]
    assert found(IMAGE, [(x,) for x in one_twice]) == []


def test_repeats_are_counted_exact_and_near():
    first, second, third, *_ = images()
    noisy = first + 1e-3 * third
    (finding,) = found(IMAGE, [(x,) for x in (first, second, third, first, noisy)])
    assert finding.kind is Kind.REPEATED
    assert finding.numbers == {"samples": 5, "exact": 1, "near": 1}
    assert finding.seen == "2 of 5 samples repeat another one (1 the same bit for bit, 1 nearly the same)"


def test_images_of_one_colour_are_found():
    samples = images(6)
    samples[1][:] = 0.25
    samples[4][:] = 0
    (finding,) = found(IMAGE, [(x,) for x in samples])
    assert (finding.kind, finding.numbers) == (Kind.CONSTANT, {"samples": 6, "constant": 2, "zeros": 1})


@pytest.mark.parametrize("wrong", [-1, 1000, 30000])
def test_ids_outside_of_the_table_are_found(wrong: int):
    samples = sentences()
    samples[3][0][2] = wrong
    (finding,) = found(IDS, samples, {"ids": 1000})
    assert finding.kind is Kind.TOKENS
    assert wrong in (finding.numbers["lowest"], finding.numbers["highest"])
    assert finding.numbers["rows"] == 1000


def test_padding_and_masks_that_hide_all_are_found():
    samples = sentences()
    samples[2][0][:] = 0
    samples[2][1][:] = 0
    ids, mask = found(IDS, samples, {"ids": 1000})
    assert (ids.kind, mask.kind) == (Kind.PADDING, Kind.PADDING)
    assert ids.numbers["padding"] == mask.numbers["hidden"] == 1
    segments = [(np.arange(16) * 0, np.roll(mask, i)) for i, (_, mask) in enumerate(sentences())]
    assert found(IDS, segments, {"ids": 2}) == []


class Words(torch.nn.Module):
    """Two tables and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = torch.nn.Embedding(200, 8), torch.nn.Embedding(2, 8)
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.fc(self.words(ids) + self.kinds(kinds))


def test_the_tables_that_inputs_index_are_known_from_the_model():
    example = tuple(torch.zeros(1, 16, dtype=torch.int64) for _ in range(2))
    imported = import_model(Words().eval(), example)
    mod = canonicalize(imported)
    rows = table_rows(mod)
    assert sorted(rows.values()) == [2, 200]
    rng = np.random.default_rng(0)
    batches = [tuple(torch.from_numpy(rng.integers(0, high, (1, 16))) for high in (200, 3)) for _ in range(4)]
    (finding,) = data_findings(imported, mod, batches)
    assert (finding.kind, finding.numbers["rows"]) == (Kind.TOKENS, 2)
