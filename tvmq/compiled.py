"""The model that `tvmq.compile` and `tvmq.load` return."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmq import artifact
from tvmq.environment import INSTALL_COMPILER
from tvmq.errors import EnvironmentMismatchError, UsageError
from tvmq.golden import Golden, checksums, default_samples, sample_of
from tvmq.gpu import fitting, is_gpu_feature, these_gpus
from tvmq.inputs import checked_inputs, is_on_gpu, is_torch
from tvmq.machine import require_machine, runs_here
from tvmq.manifest import Manifest
from tvmq.runtime import Program, load_runtime
from tvmq.spec import ENTRY, Array, Built, Coverage, Description, OutputSpec, Plan, TensorSpec

if TYPE_CHECKING:  # 15 ms that running a model need not spend
    from tvmq.breakdown import Benchmark
    from tvmq.images import Preprocessing
    from tvmq.plan.recipe import Recipe
    from tvmq.plan.records import PlanReport
    from tvmq.verification import Verification


class CompiledModel:
    """A compiled model: call it with NumPy arrays or torch tensors.

    The native code is loaded by the first call, so a model compiled for another machine can be described and
    saved here. Several threads may call one model; they take turns.
    """

    def __init__(
        self,
        built: Built,
        description: Description,
        *,
        samples: Sequence[Array] | None = None,
        golden: Golden | None = None,
    ) -> None:
        """samples: one array per input, kept (floats rounded to 8 bits) as the input that verification uses.

        golden: checksums that are known already, as in an artifact; samples are then not needed.
        """
        self._built = built
        self._description = description
        self._known = golden
        self.search: PlanReport | None = None  # what bits="auto" chose from; no part of the artifact
        if golden is not None:
            self._samples = golden.inputs
        elif samples is not None:
            self._samples = tuple(sample_of(a) for a in self._checked(samples, {}))
        else:
            self._samples = default_samples(built.inputs)

    def __repr__(self) -> str:
        takes, gives = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        share = 100 * self.coverage.macs_integer_fraction
        return f"<CompiledModel for {self._description.target}: {takes} -> {gives}; {share:.0f} % integer>"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return name, shape and dtype of each input."""
        return self._built.inputs

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Return name, shape and dtype of each output, and whether its bits are exact."""
        return self._built.outputs

    @property
    def coverage(self) -> Coverage:
        """Return which sites compute in integers, and why the others do not."""
        return self._description.coverage

    @property
    def plan(self) -> Plan:
        """Return the precision of each site."""
        return self._description.plan

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Return how photos became the inputs of calibration; None where these were arrays."""
        from tvmq.images import Preprocessing

        stored = self._description.recipe.get("photos")
        return Preprocessing.from_json(stored, "the artifact's recipe, photos") if stored else None

    @property
    def recipe(self) -> Recipe:
        """Return the bits of every site and the options, to `save`, edit and pass to `tvmq.compile`."""
        from tvmq.plan.recipe import Recipe

        return Recipe.of(self.plan, self._description.recipe)

    @cached_property
    def manifest(self) -> Manifest:
        """Return the artifact's manifest, or the one that `save` would write."""
        return artifact.pack(self._built, self._description, self._golden)[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on its inputs, by position or by name.

        Gives NumPy arrays, or torch tensors if any input is one; a single output comes without a tuple.
        A model on a GPU also takes tensors that lie there, torch's or by DLPack; its outputs then stay there.
        Raises InputError for inputs of the wrong number, shape or dtype, or with NaN or infinity.
        """
        given = (*args, *kwargs.values())
        inputs = checked_inputs(self.inputs, args, kwargs, gpu=self._gpu)
        stays = self._gpu is not None and any(map(is_on_gpu, given))
        results = self._program.run_there(*inputs) if stays else self._program.run(*inputs)
        if any(map(is_torch, given)):
            torch = sys.modules["torch"]
            results = tuple(map(torch.from_dlpack if stays else torch.from_numpy, results))
        return results[0] if len(results) == 1 else results

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Return every site's integer output by name, in order of execution; takes what a call takes.

        manifest.description.scales tells what the integers stand for.
        """
        values = self._program.trace(*self._checked(args, kwargs))
        return {site.id: value for site, value in zip(self._built.sites, values, strict=True)}

    def save(self, path: str | Path) -> None:
        """Write the artifact: always the same bytes for the same model, whole or not at all."""
        self.manifest = artifact.save(path, self._built, self._description, self._golden)

    def set_threads(self, threads: int) -> None:
        """Compute with this many threads from the next call on; the default is one per physical core."""
        self._program.set_threads(threads)

    def benchmark(
        self,
        threads: int | None = None,
        repeat: int = 50,
        inputs: Sequence[Any] | None = None,
        *,
        warmup: int = 5,
        device: str | None = None,
    ) -> Benchmark:
        """Measure `repeat` calls, after that each kernel; inputs default to the golden ones.

        A call on a GPU copies inputs there and outputs back; gpu_ms is the same without these copies.
        device: "tracker:HOST:PORT/KEY" or "rpc:HOST:PORT", a board that measures it, with the golden inputs.
        """
        from tvmq import bench
        from tvmq.breakdown import Benchmark, break_down

        if device is not None:
            if inputs is not None:
                raise UsageError("benchmark: inputs stay here, a device takes the golden ones; drop one")
            found = self._asked(device, {"do": "bench", "threads": threads, "repeat": repeat})
            return Benchmark.from_json(found, "the board's answer")
        from tvmq.neighbours import Neighbours
        from tvmq.target import parse_profile

        program = self._program
        arrays = self._checked(inputs, {}) if inputs is not None else self._golden_arrays()
        before = program.threads
        try:
            if threads is not None:
                program.set_threads(threads)
            with Neighbours() as beside:
                timing = bench.measure(lambda: program.run(*arrays), repeat, warmup)
                resident = program.resident(*arrays)
                gpu_ms = bench.measure(resident, repeat, warmup).median_ms if resident else None
                kernels = program.profile(*arrays, repeat=min(repeat, 20))
            used = program.threads
        finally:
            program.threads = before
        profile = parse_profile(self._description.profile, "the artifact's target profile")
        breakdown = break_down(kernels, 1e3 * timing.min_ms, self.coverage, profile, used)
        disturbed = ""
        if gpu_ms is None and beside.crowd(used):
            disturbed = (
                f"Other programs kept {beside.cores:.1f} cores busy meanwhile: these times are theirs too. "
                "Measure on an idle machine, or with fewer threads."
            )
        measured = timing.median_ms, timing.p10_ms, timing.p90_ms, timing.n, used
        return Benchmark(*measured, breakdown, round(beside.cores, 2), disturbed, gpu_ms)

    def verify(self, x: Sequence[Any] | Any | None = None, *, device: str | None = None) -> Verification:
        """Compare every site's integers, and every output that integers alone decide, bit for bit.

        Outputs of float operations (a sigmoid, a layer that stays float) are compared with a tolerance. Where
        integers follow such operations, the reference goes on from the program's own codes.

        Without x: the golden input against the checksums of the artifact; needs nothing but the runtime.
        For a model that was just compiled, or with x (an input, or a tuple of them): against the reference,
        which needs the compiler's packages. device: "tracker:HOST:PORT/KEY" or "rpc:HOST:PORT", a board that
        compares its own results with the checksums.
        """
        if device is not None:
            if x is not None:
                raise UsageError("verify: x stays here, a device verifies the golden input; give one of them")
            from tvmq.verification import Verification

            return Verification.from_json(self._asked(device, {"do": "verify"}), "the board's answer")
        if x is None and self._known is not None:
            return self._verify_checksums(self._known)
        if x is None:
            arrays = self._golden_arrays()
        else:
            arrays = self._checked(x if isinstance(x, tuple | list) else (x,), {})
        return self._verify_reference(arrays)

    def _asked(self, device: str, request: dict[str, Any]) -> Any:
        """Return what a board answers about this model."""
        from tvmq.device import Device

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tvmq"
            self.save(path)
            data = path.read_bytes()
        return Device.of(device).ask_about(data, request)

    @cached_property
    def _gpu(self) -> int | None:
        """The number of the GPU that computes, None for a CPU's model."""
        features = self._description.features
        return (fitting(features, these_gpus().found) or 0) if any(map(is_gpu_feature, features)) else None

    @cached_property
    def _program(self) -> Program:
        require_machine("model", self._description.features, self._built.library)
        if self._gpu is not None:
            from tvmq.gpu_runtime import GpuProgram

            return GpuProgram(self._built, self._gpu)
        if self._built.samples > 1:
            from tvmq.sample_program import SampleProgram

            return SampleProgram(self._built)
        return Program(self._built)

    @cached_property
    def _golden(self) -> Golden:
        if self._known is not None:
            return self._known
        arrays = self._golden_arrays()
        if runs_here(self._description.features, self._built.library):
            outputs, sites = self._program.run(*arrays), self._program.trace(*arrays)
        else:
            outputs, sites = self._reference(arrays, None)
        return Golden(self._samples, checksums(outputs), checksums(sites))

    def _golden_arrays(self) -> list[Array]:
        return [sample.value() for sample in self._samples]

    def _checked(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Array]:
        return checked_inputs(self._built.inputs, args, kwargs)

    def _verify_checksums(self, golden: Golden) -> Verification:
        from tvmq.verification import Verdict

        arrays = self._golden_arrays()
        sites = checksums(self._program.trace(*arrays))
        outputs = checksums(self._program.run(*arrays))
        verdict = Verdict("checksums")
        for site, found, wanted in zip(self._built.sites, sites, golden.sites, strict=True):
            verdict.checksum(site.id, site, found == wanted)
        for i, (found, wanted) in enumerate(zip(outputs, golden.outputs, strict=True)):
            verdict.checksum(f"output {i}", self._built.outputs[i], found == wanted)
        return verdict.result()

    def _verify_reference(self, arrays: Sequence[Array]) -> Verification:
        from tvmq.verification import Verdict

        sites, outputs = self._program.trace(*arrays), self._program.run(*arrays)
        wanted_outputs, wanted_sites = self._reference(arrays, sites)
        verdict = Verdict("reference")
        for site, found, wanted in zip(self._built.sites, sites, wanted_sites, strict=True):
            verdict.values(site.id, site, found, wanted)
        for i, (found, wanted) in enumerate(zip(outputs, wanted_outputs, strict=True)):
            verdict.values(f"output {i}", self._built.outputs[i], found, wanted)
        return verdict.result()

    def _reference(
        self, arrays: Sequence[Array], traced: Sequence[Array] | None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Return outputs and site tensors computed by the reference.

        traced: the program's own site tensors; the reference then goes on from its codes at every entry.
        """
        try:
            import torch

            from tvmq import reference
            from tvmq.build import integer_module, traced_values
            from tvmq.exactness import analyse, with_given_entries
        except ModuleNotFoundError as error:
            raise EnvironmentMismatchError(
                f"verify: {error.name} is not installed, the reference needs the compiler's packages; "
                f"run {INSTALL_COMPILER}, or verify without an input"
            ) from error
        mod = integer_module(artifact.graph_text(self._built), self._built.constants)
        exactness = analyse(mod)
        kept = [var for var, _ in traced_values(mod, exactness)]
        inputs = [torch.from_numpy(np.array(a)) for a in arrays]
        if traced is not None:
            mod = with_given_entries(mod, exactness.entries)
            own = zip(self._built.sites, traced, strict=True)
            inputs += [torch.from_numpy(np.array(a)) for site, a in own if site.kernel == ENTRY]
        parts = zip(*(x.tensor_split(self._built.samples) for x in inputs), strict=True)
        found = [reference.run_and_keep(mod, part, kept) for part in parts]
        outputs, values = (zip(*each, strict=True) for each in zip(*found, strict=True))
        return tuple(map(_numpy, outputs)), tuple(map(_numpy, values))


def load(path: str | Path, *, sha256: str | None = None, threads: int | None = None) -> CompiledModel:
    """Return the model in an artifact.

    The artifact's native code will run in this process: load only files that you trust. sha256 pins the
    digest of the file itself. Raises UsageError for a file that cannot be read, ArtifactError for one that is
    damaged or not for this machine, EnvironmentMismatchError for the wrong version of TVM.
    """
    opened = artifact.open_artifact(path, sha256=sha256, meanwhile=load_runtime)
    model = CompiledModel(opened.built, opened.manifest.description, golden=opened.golden)
    model.manifest = opened.manifest
    if threads is not None:
        model.set_threads(threads)
    return model


def _numpy(samples: Sequence[Any]) -> Array:
    """Return a value of all samples."""
    arrays = [s.detach().cpu().contiguous().numpy() if hasattr(s, "detach") else s for s in samples]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
