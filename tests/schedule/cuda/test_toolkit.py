"""Every kernel family compiles for every architecture, without a GPU, to the instructions it is about."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tvm

from tests.schedule.cuda.cases import conv_spec, linear_spec
from tests.schedule.cuda.emulator import generated
from tests.schedule.cuda.test_rows import DEIT
from tvmq import cuda_libraries
from tvmq.errors import EnvironmentMismatchError
from tvmq.linker import require_linker
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.pool_composite import Pooling
from tvmq.schedule.cuda import toolkit
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.product import ProductSpec, default_tile, product_prim_func
from tvmq.schedule.cuda.rows import attention_prim_func, layer_norm_prim_func
from tvmq.schedule.cuda.source import whole
from tvmq.schedule.cuda.toolkit import require_cuda
from tvmq.schedule.cuda.windows import depthwise_prim_func, pool_prim_func
from tvmq.schedule.depthwise_spec import DepthwiseSpec
from tvmq.schedule.layer_norm import LayerNormSpec
from tvmq.schedule.pool import PoolSpec

ARCHITECTURES = ("sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
WIDE_MMA, NARROW_MMA = "mma.sync.aligned.m16n8k32.row.col.s32", "mma.sync.aligned.m8n8k16.row.col.s32"
WIDE_MMA4, NARROW_MMA4 = "mma.sync.aligned.m16n8k64.row.col.s32", "mma.sync.aligned.m8n8k32.row.col.s32"


def marked(architecture: str) -> object:
    """Return the parameter, slow but for one architecture: each takes some seconds."""
    return pytest.param(architecture, marks=[] if architecture == "sm_87" else pytest.mark.slow)


def compiler(architecture: str) -> toolkit.Nvrtc:
    try:
        return require_cuda(architecture)
    except EnvironmentMismatchError as error:
        pytest.skip(str(error))


@functools.cache
def source(capability: tuple[int, int]) -> str:
    """Return the source of a kernel of each family, with its default decisions."""
    gpu = GpuModel(capability, 16, 2048)
    fields = {"batch": 1, "rows": 9, "columns": 9, "channels": 32, "outputs": 32}
    window = ConvGeometry(**fields, kernel_rows=3, kernel_columns=3, top=1)
    apart = ConvGeometry(**fields, kernel_rows=3, kernel_columns=3, groups=32)
    linear, conv, depthwise = (
        linear_spec(197, 192, 96, "table"),
        conv_spec(window, "copy"),
        conv_spec(apart, "int8"),
    )
    assert isinstance(conv, ProductSpec)
    assert isinstance(depthwise, DepthwiseSpec)
    few_bits = linear_spec(197, 192, 96, "int8", signed=True, weight_bits=min(gpu.weight_bits))
    largest = Pooling(operation="max", in_dtype="uint8", out_dtype="uint8")
    funcs = {
        "linear": product_prim_func(linear, default_tile(linear, gpu)),
        "few_bits": product_prim_func(few_bits, default_tile(few_bits, gpu)),
        "conv": product_prim_func(conv, default_tile(conv, gpu)),
        "depthwise": depthwise_prim_func(depthwise, False, 128),
        "pool": pool_prim_func(PoolSpec(apart, largest), 128),
        "norm": layer_norm_prim_func(LayerNormSpec(197, 192, 10, 300, 1 << 15, "uint8"), 4),
        "attention": attention_prim_func(DEIT, 4),
    }
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in funcs.items()})
    return whole(generated(mod, capability))


@pytest.mark.parametrize("architecture", [marked(name) for name in ARCHITECTURES])
def test_every_family_compiles(architecture: str, tmp_path: Path):
    number = architecture.removeprefix("sm_")
    capability = int(number[:-1]), int(number[-1])
    tool = compiler(architecture)
    text = tool.compiled(source(capability), architecture, "PTX").decode()
    assert ("dp4a.u32.s32" in text) is True  # of depthwise convolutions, everywhere
    assert (f"{WIDE_MMA}.u8.s8.s32" in text and f"{WIDE_MMA}.s8.s8.s32" in text) == (capability >= (8, 0))
    assert (f"{NARROW_MMA}.u8.s8.s32" in text) == (capability == (7, 5))
    for name, known in ((WIDE_MMA4, (8, 0) <= capability < (9, 0)), (NARROW_MMA4, capability == (7, 5))):
        assert (f"{name}.u4.s4.s32" in text and f"{name}.s4.s4.s32" in text) == known
    assert ("cp.async.cg.shared.global" in text) == (capability >= (8, 0))
    assert ("ldmatrix.sync.aligned" in text) == (capability >= (7, 5))
    code = tool.cubin(source(capability), architecture)
    assert code[:4] == b"\x7fELF"
    assert b"linear_kernel" in code
    _check_machine_code(code, capability, tmp_path)


def test_the_version_of_the_compiler_is_told(monkeypatch: pytest.MonkeyPatch):
    assert compiler("sm_87").version() == toolkit.compiler_version("sm_87")
    assert toolkit.compiler_version("sm_87").startswith("13.")
    monkeypatch.setattr(toolkit, "_nvrtc", lambda _: None)
    assert toolkit.compiler_version("sm_87") == "none"


def _check_machine_code(code: bytes, capability: tuple[int, int], folder: Path) -> None:
    """Look at the instructions themselves; nvdisasm 13 knows none before Turing, whose PTX has dp4a."""
    tool = shutil.which(cuda_libraries.library("cu13/bin", "nvdisasm"))
    if tool is None:
        pytest.skip("nvdisasm is not installed: the extra test has it")
    if capability < (7, 5):
        return
    (folder / "code.cubin").write_bytes(code)
    text = subprocess.run(
        [tool, "-c", folder / "code.cubin"], capture_output=True, text=True, check=True
    ).stdout
    assert "IMMA" in text
    assert (".U4.S4" in text) == (capability < (9, 0))  # in one instruction, not by unpacking
    assert "LDSM" in text
    assert ("LDGSTS" in text) == (capability >= (8, 0))
    assert "IDP" in text


def test_an_error_in_the_source_is_told_in_the_compilers_words():
    with pytest.raises(RuntimeError, match=r"sm_80: [\s\S]*no_such_type"):
        compiler("sm_80").cubin("no_such_type x;", "sm_80")


@pytest.mark.slow
def test_a_driver_that_is_too_old_does_not_keep_from_compiling(tmp_path: Path):
    compiler("sm_87")
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned flags) { return 0; }")  # none of what CUDA 12 has brought
    library = tmp_path / "libcuda.so.1"
    require_linker().run(["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)])
    script = (
        "import tvm; from tvmq.schedule.cuda.toolkit import compiling\n"
        "with compiling('sm_87'): tvm.get_global_func('device_api.cuda')"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_missing_compiler_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toolkit, "_nvrtc", lambda version: None)
    with pytest.raises(EnvironmentMismatchError, match=r"no CUDA compiler for sm_87.*\[compile,cuda\]"):
        require_cuda("sm_87")
    with pytest.raises(EnvironmentMismatchError, match=r"sm_72 found, NVRTC 12.*\[compile,cuda12\]"):
        require_cuda("sm_72")
