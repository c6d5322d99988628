"""Profiles: what is in the box, what names mean, and what a wrong file is told."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tvmq import target
from tvmq.errors import EnvironmentMismatchError, UsageError
from tvmq.target import builtin_profiles, load_profile, native_profile, parse_profile

NAMES = {
    "x86_amx", "x86_avx512_vbmi", "x86_avx512_vnni", "x86_avx512", "x86_avx_vnni", "x86_avx2",
    "x86_baseline",
    "neoverse_v1", "neoverse_n1", "arm_dotprod", "arm_neon", "arm_v7",
    "t4", "rtx", "a100", "h100", "jetson-xavier", "jetson-orin", "jetson-thor",
}  # fmt: skip
AVX2 = load_profile("x86_avx2")
CPUS = [profile for profile in builtin_profiles() if profile.capability is None]
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="picks among x86 profiles")


def test_every_builtin_profile_is_complete_and_survives_a_round_trip():
    assert {profile.name for profile in builtin_profiles()} == NAMES
    for profile in builtin_profiles():
        assert parse_profile(profile.to_toml(), "copy.toml") == profile
        fallback = profile.kernels[-1]
        assert fallback.activation == fallback.weight == fallback.accumulator == "float32"
        assert profile.machine.source
        assert all(kernel.source for kernel in profile.kernels)


def test_names_and_aliases_are_unique():
    names = [name for profile in builtin_profiles() for name in (profile.name, *profile.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("x86", "x86_avx2"),
        ("arm_cpu", "arm_dotprod"),
        ("rpi5", "arm_dotprod"),
        ("rpi4", "arm_neon"),
        ("rpi3", "arm_v7"),
        ("neoverse-n1", "neoverse_n1"),
        ("neoverse-v1", "neoverse_v1"),
        ("h200", "h100"),
    ],
)
def test_an_alias_means_its_profile(alias: str, name: str):
    assert load_profile(alias).name == name


def test_features_are_spelt_as_linux_spells_them():
    features = load_profile("x86_avx512_vbmi").features
    assert {"avx512_vnni", "avx512vbmi", "avx512_vbmi2", "avx512vl", "sse4_1", "pni", "bmi1"} <= features
    assert "asimddp" in load_profile("rpi5").features
    assert "asimddp" not in load_profile("rpi4").features


def test_a_row_of_several_weights_is_a_kernel_for_each():
    text = AVX2.to_toml().replace('weight = "int8"', 'weight = ["int8", "int4"]')
    assert [kernel.weight for kernel in parse_profile(text, "x").kernels][:2] == ["int8", "int4"]
    vnni = load_profile("x86_avx512_vnni").kernels
    assert [kernel.weight for kernel in vnni if kernel.activation == "uint8"] == [
        "int8", "int6", "int5", "int4", "int3", "int2",
    ]  # fmt: skip


@on_x86
@pytest.mark.parametrize(
    ("features", "name"),
    [
        (load_profile("x86_amx").features, "x86_avx512_vbmi"),  # x86_amx is not automatic
        (load_profile("x86_avx512_vbmi").features - {"avx512vbmi"}, "x86_avx512_vnni"),
        (load_profile("x86_avx512_vbmi").features - {"avx512vl"}, "x86_avx2"),
        (load_profile("x86_avx512_vnni").features - {"avx512_vnni"}, "x86_avx512"),
        (load_profile("x86_avx2").features | {"avx_vnni"}, "x86_avx_vnni"),
        (load_profile("x86_avx512_vbmi").features | {"avx_vnni"}, "x86_avx512_vbmi"),
        (load_profile("x86_baseline").features, "x86_baseline"),
    ],
)
def test_native_takes_the_best_profile_the_cpu_can_run(features: frozenset[str], name: str):
    assert native_profile(features).name == name


@on_x86
def test_a_cpu_below_every_profile_is_told_what_it_lacks():
    with pytest.raises(EnvironmentMismatchError, match=r"lacks cx16, lahf_lm, .* 'x86_baseline' needs"):
        native_profile(frozenset({"sse2"}))


def test_a_profile_file_is_loaded_by_path(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(AVX2.to_toml().replace('"x86_avx2"', '"mine"'), encoding="utf-8")
    assert load_profile(path).name == load_profile(str(path)).name == "mine"


def test_an_unknown_target_is_told_the_known_ones():
    with pytest.raises(
        UsageError, match=r"'x86_avx512_vni', did you mean 'x86_avx512_vnni'\?; known .*native"
    ):
        load_profile("x86_avx512_vni")
    with pytest.raises(UsageError, match="unknown target 'cuda'; known targets: a100"):
        load_profile("cuda")
    with pytest.raises(UsageError, match=r"nowhere.toml: cannot be read"):
        load_profile("nowhere.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("macs_per_cycle", "mac_per_cycle", r"kernel\[0\]: unknown key 'mac_per_cycle', did you"),
        ("clock_ghz = 3.0", "clock_ghz = 'fast'", "machine: clock_ghz = 'fast' has the wrong type"),
        ('summary = "', 'summary_ = "', "unknown key 'summary_', did you mean 'summary'"),
        ('activation = "uint8"', 'activation = "int7"', "'int7' is not a dtype"),
        ('weight = "int8"', 'weight = ["int4", "int7"]', "weight = 'int7' is not a dtype"),
        ("automatic = true", "automatic = 1", "automatic = 1 has the wrong type"),
        ("schema = 1", "schema = 2", "schema 2 is not known"),
        ('kind = "llvm"', 'kind = "c"', "'llvm' or 'cuda' is wanted"),
        ("x86_64-linux-gnu", "mips-linux-gnu", "one that starts with arm or aarch64 or x86_64 is wanted"),
        ("schema = 1", "schema 1", "not a TOML file"),
    ],
)  # fmt: skip
def test_a_wrong_profile_gets_a_sentence(old: str, new: str, message: str):
    with pytest.raises(UsageError, match=message):
        parse_profile(AVX2.to_toml().replace(old, new), "mine.toml")


def test_features_follow_from_mcpu_and_mattr_unless_listed():
    lines = [line for line in AVX2.to_toml().splitlines() if not line.startswith("requires")]
    derived = "\n".join(lines)
    assert parse_profile(derived, "mine.toml").features == AVX2.features
    with pytest.raises(UsageError, match=r"'x86-64-v9', did you mean .*requires = \[...\]"):
        parse_profile(derived.replace("x86-64-v3", "x86-64-v9"), "mine.toml")
    misspelt = derived.replace('mcpu = "x86-64-v3"', 'mcpu = "x86-64-v3"\nmattr = ["+avx512_vnni"]')
    with pytest.raises(UsageError, match=r"'\+avx512_vnni', did you mean '\+avx512vnni'\?"):
        parse_profile(misspelt, "mine.toml")


def test_a_tvm_target_gets_the_kernels_of_the_best_profile():
    from tvm.target import Target

    given = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "icelake-server"})
    profile = target.load_profile(given)
    assert profile.kernels == load_profile("x86_avx512_vbmi").kernels
    assert {"avx512_vnni", "avx512vbmi"} <= profile.features
    assert profile.tvm_target["mcpu"] == "icelake-server"
    assert profile.tvm().export() == given.export()
    assert parse_profile(profile.to_toml(), "copy.toml") == profile


@pytest.mark.parametrize("profile", CPUS, ids=lambda profile: profile.name)
def test_a_profile_survives_as_a_tvm_target(profile: target.TargetProfile):
    found = load_profile(profile.tvm())
    assert found.features == profile.features
    assert (found.kernels == profile.kernels) == profile.automatic


def test_a_gpus_profile_has_a_cpu_beside_it():
    orin = load_profile("jetson-orin")
    assert (orin.capability, orin.architecture, orin.machine.processors) == ((8, 7), "aarch64", 16)
    assert orin.features == {"asimd", "sm_87", "cuda_13"}
    host = orin.tvm().host
    assert (str(orin.tvm().kind.name), str(host.kind.name), str(host.attrs["mcpu"])) == (
        "cuda",
        "llvm",
        "generic",
    )
    with pytest.raises(UsageError, match="arch is 'sm87'; the GPU's is wanted"):
        parse_profile(orin.to_toml().replace("sm_87", "sm87"), "x")


def test_every_intrinsic_that_a_profile_names_is_there():
    from tvm.s_tir import TensorIntrin

    from tvmq.schedule import x86_intrinsics
    from tvmq.schedule.isa import ISAS, TILE_PRODUCT

    x86_intrinsics.register()
    named = {kernel.intrinsic for profile in builtin_profiles() for kernel in profile.kernels} - {None}
    assert named == {isa.dot for isa in ISAS} | {TILE_PRODUCT}
    for name in (isa.dot for isa in ISAS if isa.vnni):
        assert TensorIntrin.get(name) is not None


def test_a_tvm_target_of_another_kind_is_refused():
    from tvm.target import Target

    with pytest.raises(UsageError, match="kind 'c' is not supported"):
        load_profile(Target("c"))
