import dataclasses
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tvmq
from tests import tiny_program, tiny_transformer
from tvmq import artifact, machine
from tvmq.compiled import CompiledModel, load
from tvmq.errors import ArtifactError, InputError, VerificationError

X = tiny_program.an_input()


@pytest.fixture(scope="module")
def model():
    return CompiledModel(tiny_program.built(), tiny_program.description(), samples=(X,))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "m.tvmq"
    model.save(path)
    return path


def test_a_loaded_model_gives_the_same_numbers(model, path):
    loaded = tvmq.load(path, threads=1)
    for a, b in zip(model(X), loaded(x=X), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(loaded(X)[0], tiny_program.expected(X))
    assert loaded.manifest == model.manifest
    assert loaded.coverage.macs_integer_fraction == 1
    assert loaded.plan.sites[0].site == "fc"
    assert [str(spec) for spec in loaded.inputs] == ["x uint8[4, 8]"]


def test_torch_in_torch_out(model):
    torch = pytest.importorskip("torch")
    y, again = model(torch.from_numpy(X))
    assert isinstance(y, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), tiny_program.expected(X))


def test_every_sites_integers_can_be_seen(model):
    values = model.trace(X)
    assert list(values) == ["fc", "fc.bias"]
    np.testing.assert_array_equal(values["fc.bias"], model(X)[0])


def test_wrong_inputs_are_refused(model):
    with pytest.raises(InputError, match="input 'x': dtype int16 given, uint8 wanted"):
        model(X.astype(np.int16))


def test_checksums_hold(path):
    result = load(path).verify()
    assert result.ok
    assert (result.against, result.sites, result.outputs) == ("checksums", 2, 2)
    result.require()


def test_the_first_site_that_differs_is_named(path):
    opened = artifact.open_artifact(path)
    constants = (opened.built.constants[0], dataclasses.replace(opened.built.constants[1]))
    constants[1].array[3] += 1
    broken = dataclasses.replace(opened.built, constants=constants)
    result = CompiledModel(broken, opened.manifest.description, golden=opened.golden).verify()
    assert result.mismatches == ("fc.bias", "output 0")
    with pytest.raises(
        VerificationError, match=r"fc\.bias: differs from the checksums, the first of 2 out of 4"
    ):
        result.require()


def test_an_input_of_the_users_is_checked_against_the_reference(tmp_path):
    (x,) = tiny_transformer.inputs(1, seed=9)
    tiny_transformer.model().save(tmp_path / "m.tvmq")
    loaded = load(tmp_path / "m.tvmq")
    result = loaded.verify(x)
    assert (result.against, result.ok, result.sites, result.outputs) == ("reference", True, 20, 1)

    program = loaded._program
    number = [site.id for site in loaded._built.sites].index("blocks.0.fc2")

    def with_one_bit_wrong(*arrays):
        sites = program.trace(*arrays)
        sites[number].flat[17] ^= 1
        return sites

    vars(loaded)["_program"] = SimpleNamespace(trace=with_one_bit_wrong, run=program.run)
    assert loaded.verify(x).mismatches == ("blocks.0.fc2",)


def test_benchmark_covers_latency_and_kernels(model):
    result = model.benchmark(threads=1, repeat=5)
    assert result.runs == 5
    assert result.threads == 1
    assert result.p10_ms <= result.median_ms <= result.p90_ms
    assert [part.name for part in result.breakdown.parts] == ["fc", "fc.bias"]
    assert [part.macs for part in result.breakdown.parts] == [512, 0]
    # kernels are measured by themselves, on a machine that others may use; a wrong unit is further off
    assert 0 < result.breakdown.whole_us <= 100e3 * result.p90_ms
    first, *kernels = str(result).splitlines()
    assert first.endswith("5 runs on 1 thread; the slowest kernels:")
    assert sorted(line.split()[-1] for line in kernels if " us " in line) == ["fc", "fc.bias"]
    crowded = replace(result, disturbed="Others were there.")
    assert str(crowded).endswith("\nOthers were there.")


def test_a_model_for_another_machine_can_be_described_but_not_run(path, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"sse2"}))
    opened = artifact.open_artifact(path)
    needs_more = dataclasses.replace(opened.manifest.description, features=("avx512_vnni", "sse2"))
    foreign = CompiledModel(opened.built, needs_more, golden=opened.golden)
    foreign.save(tmp_path / "m")
    lacking = r"needs the CPU feature avx512_vnni, which this CPU \(.*\) lacks"
    with pytest.raises(ArtifactError, match=lacking):
        load(tmp_path / "m")
    with pytest.raises(ArtifactError, match=lacking):
        foreign(X)


def test_torch_can_be_imported_after_the_first_call(path):
    code = (
        f"import sys, tvmq, numpy as np\nmodel = tvmq.load({str(path)!r})\n"
        "x = np.ones(model.inputs[0].shape, 'uint8'); y = model(x); assert 'torch' not in sys.modules\n"
        "import torch; again = model(torch.from_numpy(x))\n"
        "assert [a.numpy().tobytes() for a in again] == [a.tobytes() for a in y]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_imports_nothing_of_measuring_and_comparing(path):
    code = (
        "import sys, tvmq, numpy as np\n"
        f"model = tvmq.load({str(path)!r}); model(np.zeros(model.inputs[0].shape, 'uint8'))\n"
        "print(*(name for name in ('bench', 'breakdown', 'target', 'verification') "
        "if f'tvmq.{name}' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_loading_and_running_does_not_import_tvm(path):
    code = (
        "import sys; import tvmq, numpy as np\n"
        f"model = tvmq.load({str(path)!r}); model.verify().require()\n"
        "print(*({'tvm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
