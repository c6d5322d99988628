"""Notice calibration samples that repeat, say nothing, or are not what the model reads.

Looks at the inputs alone, a batch at a time; a digest and a fingerprint of each sample is all that is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import tvm
from tvm import relax

from tvmq.calibrate.batches import input_specs, samples_in
from tvmq.calibrate.findings import Finding, Kind, worth_telling
from tvmq.calibrate.normalisation import scaling_findings
from tvmq.passes.rebuild import bindings, op_name
from tvmq.spec import TensorSpec

Batch = Sequence[torch.Tensor]

REPEATED = 0.10  # of the samples: data sets hold some repeats, and a few change nothing
FINGERPRINT = 1024  # numbers of a sample that tell whether it is nearly another one
MOST_FINGERPRINTS = 1024  # 4 MB
NEARLY = 0.02  # root mean square difference, in standard deviations of all fingerprints
FEWEST_NUMBERS = 64  # in a sample: fewer (a time step, a switch) may well be constant
WORDS = 100  # rows of a table of words; one of segments or of languages has fewer
FEWEST_TOKENS = 4
WIDENING = ("astype", "reshape", "expand_dims", "squeeze")  # what token ids pass on their way to a table


@dataclass(slots=True)
class InputCheck:
    """The streaming check of all samples of a model's inputs."""

    specs: Sequence[TensorSpec]
    tables: Mapping[str, int]  # rows of the table that an input indexes, by input
    samples: int = 0
    digests: set[bytes] = field(default_factory=set)
    fingerprints: list[npt.NDArray[np.float32]] = field(default_factory=list)
    constant: dict[str, int] = field(default_factory=dict)  # samples of one value, by input
    blank: dict[str, int] = field(default_factory=dict)  # samples of zeros alone, by input
    lowest: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def update(self, batch: Batch) -> None:
        """Look at one batch."""
        for index in range(samples_in(batch)):
            sample = [tensor[index] if tensor.ndim else tensor for tensor in batch]
            arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in sample]
            self._recognise(arrays)
            for spec, array in zip(self.specs, arrays, strict=True):
                self._measure(spec.name, array)
            self.samples += 1

    def _recognise(self, arrays: Sequence[npt.NDArray[np.generic]]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(array.data)
        key = digest.digest()
        floats = [a for a in arrays if a.dtype.kind == "f" and a.size >= FINGERPRINT]
        if key not in self.digests and floats and len(self.fingerprints) < MOST_FINGERPRINTS:
            flat = floats[0].reshape(-1)
            taken = np.linspace(0, flat.size - 1, FINGERPRINT).astype(np.int64)
            self.fingerprints.append(flat[taken].astype(np.float32))
        self.digests.add(key)

    def _measure(self, name: str, array: npt.NDArray[np.generic]) -> None:
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        self.lowest[name] = min(low, self.lowest.get(name, low))
        self.highest[name] = max(high, self.highest.get(name, high))
        self.constant[name] = self.constant.get(name, 0) + (low == high)
        self.blank[name] = self.blank.get(name, 0) + (low == high == 0)

    def findings(self) -> Iterator[Finding]:
        """Yield what looks wrong."""
        yield from self._repeats()
        for spec in self.specs:
            if spec.dtype.startswith("float"):
                yield from self._constant_floats(spec)
            elif spec.name in self.tables:
                yield from self._tokens(spec, self.tables[spec.name])
            else:
                yield from self._masks(spec)

    def _repeats(self) -> Iterator[Finding]:
        exact = self.samples - len(self.digests)
        near = _nearly_repeated(self.fingerprints)
        if exact + near >= REPEATED * self.samples and exact + near:
            parts = [f"{exact} the same bit for bit"] * bool(exact) + [f"{near} nearly the same"] * bool(near)
            kept = self.samples - exact - near
            yield Finding(
                Kind.REPEATED,
                f"{exact + near} of {self.samples} samples repeat another one ({', '.join(parts)})",
                f"they count as {kept}, and ranges are chosen for what repeats",
                "give different samples",
                {"samples": self.samples, "exact": exact, "near": near},
            )

    def _constant_floats(self, spec: TensorSpec) -> Iterator[Finding]:
        count = self.constant.get(spec.name, 0)
        numbers = int(np.prod(spec.shape[1:], dtype=np.int64))
        if numbers >= FEWEST_NUMBERS and worth_telling(count, self.samples):
            zeros = self.blank[spec.name]
            of_zeros = f" throughout, {zeros} of them 0" if zeros else " throughout"
            yield Finding(
                Kind.CONSTANT,
                f"{count} of {self.samples} samples of input {spec.name!r} hold one value{of_zeros}",
                "an image of one colour or an empty sequence says nothing of the values to come",
                "leave them out, or look why they were read so",
                {"samples": self.samples, "constant": count, "zeros": zeros},
            )

    def _tokens(self, spec: TensorSpec, rows: int) -> Iterator[Finding]:
        low, high = int(self.lowest.get(spec.name, 0)), int(self.highest.get(spec.name, 0))
        if low < 0 or high >= rows:
            yield Finding(
                Kind.TOKENS,
                f"input {spec.name!r} holds ids from {low} to {high}, its table has rows 0 to {rows - 1}",
                "other rows are read in their place",
                "make the ids with the model's own tokenizer",
                {"lowest": low, "highest": high, "rows": rows},
            )
        count = self.constant.get(spec.name, 0)
        long = len(spec.shape) > 1 and spec.shape[-1] >= FEWEST_TOKENS
        if rows >= WORDS and long and worth_telling(count, self.samples):
            yield Finding(
                Kind.PADDING,
                f"{count} of {self.samples} samples of input {spec.name!r} hold one id throughout",
                "a sequence of padding says nothing of the values that words give",
                "leave them out, or look why their words are lost",
                {"samples": self.samples, "padding": count},
            )

    def _masks(self, spec: TensorSpec) -> Iterator[Finding]:
        """Yield a finding on masks that hide everything."""
        flags = self.lowest.get(spec.name) == 0 and self.highest.get(spec.name) == 1
        count = self.blank.get(spec.name, 0)
        if flags and spec.shape[-1:] >= (FEWEST_TOKENS,) and worth_telling(count, self.samples):
            yield Finding(
                Kind.PADDING,
                f"{count} of {self.samples} samples of the mask {spec.name!r} are all 0",
                "1 shows a position and 0 hides it in most models, so these sequences are empty",
                "leave them out, or look why their masks are empty",
                {"samples": self.samples, "hidden": count},
            )


def data_findings(
    imported: tvm.IRModule, canonical: tvm.IRModule, batches: Sequence[Batch], *, prepared: str = ""
) -> tuple[Finding, ...]:
    """Return what looks wrong with the samples that a model is to be calibrated on.

    imported, canonical: the model at these levels; prepared: as for scaling_findings.
    """
    specs = input_specs(canonical)
    check = InputCheck(specs, table_rows(canonical))
    for batch in batches:
        check.update(batch)
    return (*check.findings(), *scaling_findings(imported, specs, batches, prepared=prepared))


def table_rows(mod: tvm.IRModule) -> dict[str, int]:
    """Return the rows of the constant table that an input indexes, by input; the fewest if several."""
    values = {binding.var: binding.value for binding in bindings(mod["main"])}
    rows: dict[str, int] = {}
    for value in values.values():
        if op_name(value) != "take" or not isinstance(value.args[0], tvm.ir.GenericConst):
            continue
        source = value.args[1]
        while source in values and op_name(values[source]) in WIDENING:
            source = values[source].args[0]
        if isinstance(source, relax.Var) and source not in values and value.attrs.axis is not None:
            length = int(value.args[0].ty.shape[int(value.attrs.axis)])
            rows[source.name] = min(length, rows.get(source.name, length))
    return rows


def _nearly_repeated(fingerprints: Sequence[npt.NDArray[np.float32]]) -> int:
    """Return how many fingerprints nearly equal an earlier one."""
    if len(fingerprints) < 2:
        return 0
    rows = np.stack(fingerprints).astype(np.float64)
    limit = FINGERPRINT * (NEARLY * float(rows.std())) ** 2
    squares = (rows * rows).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    return int((np.tril(distances <= limit, -1).any(1)).sum()) if limit > 0 else 0
