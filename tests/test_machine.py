import platform

import pytest

from tvmq import environment, machine
from tvmq.errors import ArtifactError
from tvmq.machine import ELF_MACHINES, require_machine, runs_here, this_machine

NUMBER = {name: number for number, name in ELF_MACHINES.items()}


def elf(name):
    return b"\x7fELF" + bytes(14) + NUMBER[name].to_bytes(2, "little")


@pytest.fixture
def pretend(monkeypatch):
    """Make this process one of another machine."""

    def become(name, *features, bits=64, cpu="Raspberry Pi 4 Model B"):
        monkeypatch.setattr(platform, "machine", lambda: name)
        monkeypatch.setattr(machine.sys, "maxsize", 2 ** (bits - 1) - 1)
        monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(features))
        monkeypatch.setattr(machine, "cpu_name", lambda: cpu)

    return become


def test_code_of_this_machine_is_welcome(pretend):
    require_machine("m", [], elf(this_machine()))
    pretend("aarch64", "asimd", "asimddp")
    require_machine("m", ["asimd", "asimddp"], elf("aarch64"))


def test_x86_code_on_arm_is_refused(pretend):
    pretend("aarch64", "asimd")
    with pytest.raises(
        ArtifactError, match="m: holds code for linux on x86_64, this is linux on aarch64; compile"
    ):
        require_machine("m", [], elf("x86_64"))


def test_dot_products_on_a_raspberry_pi_4_are_refused(pretend):
    pretend("aarch64", "asimd")
    with pytest.raises(
        ArtifactError,
        match=r"needs the CPU feature asimddp, which .*Raspberry Pi 4.* lacks; .*--target arm_neon",
    ):
        require_machine("m", ["asimd", "asimddp"], elf("aarch64"))
    assert not runs_here(["asimddp"], elf("aarch64"))


@pytest.mark.parametrize("kernel", ["armv7l", "aarch64"])
def test_64_bit_code_in_a_32_bit_system_is_refused_also_on_a_64_bit_kernel(pretend, kernel):
    pretend(kernel, bits=32)
    with pytest.raises(ArtifactError, match="on aarch64, this is linux on arm; install a 64-bit system"):
        require_machine("m", [], elf("aarch64"))


def test_arm_features_come_from_the_kernel_and_not_from_cpuinfo(monkeypatch):
    words = {environment.AT_HWCAP: 1 << 1 | 1 << 20, environment.AT_HWCAP2: 1 << 13}
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    class Auxiliary:
        restype = argtypes = None

        def __call__(self, which):
            return words[which]

    monkeypatch.setattr(environment.ctypes, "CDLL", lambda _: type("C", (), {"getauxval": Auxiliary()})())
    monkeypatch.setattr(environment, "cpu_features", environment.cpu_features.__wrapped__)
    assert environment.cpu_features() == {"asimd", "asimddp", "i8mm"}
