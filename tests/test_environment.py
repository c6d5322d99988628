import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import tvmq
from tvmq import environment
from tvmq.errors import EnvironmentMismatchError
from tvmq.model_file import open_model

X86 = "processor : 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu sse2 avx512_vnni\n\nprocessor : 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5\n"
ARM_SERVER = "processor : 0\nFeatures : fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    environment.cpu_features.cache_clear()
    environment.cpu_name.cache_clear()
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    yield tmp_path / "cpuinfo"
    environment.cpu_features.cache_clear()
    environment.cpu_name.cache_clear()


def pretend_versions(monkeypatch, **found):
    def version(name):
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_supported_pair_passes():
    environment.require_tvm()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"},
            "apache-tvm-ffi 0.1.15.post2 found",
        ),
        ({"apache-tvm": "0.28.0", "apache-tvm-ffi": "0.1.14.post1"}, "apache-tvm 0.28.0 found"),
        ({}, "apache-tvm is not installed and apache-tvm-ffi is not installed found"),
    ],
)
def test_another_pair_is_refused_with_the_way_out(monkeypatch, found, message):
    pretend_versions(monkeypatch, **found)
    with pytest.raises(EnvironmentMismatchError, match=message) as caught:
        environment.require_tvm()
    assert "run `pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1`" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "features", "name"),
    [
        (X86, {"fpu", "sse2", "avx512_vnni"}, "A CPU @ 2 GHz"),
        (ARM, {"fp", "asimd", "asimddp"}, "Raspberry Pi 5"),
    ],
)
def test_features_are_read_as_linux_spells_them(cpuinfo, text, features, name):
    cpuinfo.write_text(text)
    assert environment.cpu_features() == features
    assert environment.cpu_name() == name


def test_a_cpu_without_a_name_is_told_by_its_numbers(cpuinfo, monkeypatch):
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    cpuinfo.write_text(ARM_SERVER)  # records of tuning are of one CPU model, whatever it is called
    assert environment.cpu_name() == "aarch64 implementer 0x41 part 0xd0c"


def test_cpus_of_one_name_are_told_apart_by_their_numbers(cpuinfo):
    environment.cpu_identity.cache_clear()
    cpuinfo.write_text("model name : A CPU\ncpu family : 25\nmodel : 17\nstepping : 1\n")
    assert environment.cpu_identity() == "A CPU, family 25 model 17 stepping 1"
    environment.cpu_identity.cache_clear()


def test_macos_features_get_linux_names(cpuinfo, monkeypatch):
    answers = {"hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "0"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(environment, "_sysctl", lambda name: answers.get(name, ""))
    assert environment.cpu_features() == {"asimddp"}


def test_default_threads_are_physical_cores_within_the_quota(tmp_path, monkeypatch):
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(environment, "allowed_cpus", lambda: tuple(range(8)))
    monkeypatch.setattr(environment, "CPU_TOPOLOGY", tmp_path)
    monkeypatch.setattr(environment, "CGROUP_QUOTA", tmp_path / "cpu.max")
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert environment.default_threads() == 4
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert environment.default_threads() == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment.default_threads() == 2


@pytest.mark.skipif(len(environment.allowed_cpus()) < 2, reason="one CPU")
def test_a_thread_that_tvm_bound_to_a_core_hides_no_cpus():
    code = (
        "import os\n"
        "from tvmq.environment import allowed_cpus, default_threads\n"
        "before = allowed_cpus(), default_threads()\n"
        "os.sched_setaffinity(0, {before[0][0]})\n"
        "assert (allowed_cpus(), default_threads()) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiling_without_its_packages_says_how_to_get_them(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    monkeypatch.delitem(vars(tvmq), "compile", raising=False)
    for use in (lambda: tvmq.compile, lambda: open_model(Path("m.onnx"))):
        with pytest.raises(EnvironmentMismatchError, match=r"onnx not installed, .* run `pip .*compile"):
            use()


def test_tiles_are_allowed_where_the_cpu_has_them():
    assert environment.allow_amx_tiles() == ("amx_tile" in environment.cpu_features())
