from dataclasses import replace

import numpy as np
import pytest
import torch
from tvm import relax
from tvm.relax import op

from tests.cost.tiny import NATIVE, ROWS, WIDTH, asked, module
from tests.strategies import ModuleBuilder
from tvmq import reference
from tvmq.cost.model_works import uniform
from tvmq.cost.works import Parts, Work, isolated, peak_bytes, without
from tvmq.passes.rebuild import bindings
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import Use
from tvmq.schedule.linear_spec import LinearSpec
from tvmq.spec import W8A8

SPEC = LinearSpec(rows=3, inputs=4, outputs=5, out_dtype="int16", copy=(7, 12), low=3)


def work(spec: LinearSpec) -> Work:
    return Work(Use(Kernel((spec, "x86"), "linear_3x4x5", (None,), lambda: None), 1, ()), {})


def test_constants_that_take_no_time_do_not_make_another_kernel():
    assert work(SPEC).key == work(replace(SPEC, copy=(9, 1), low=5)).key
    others = [
        replace(SPEC, rows=4),
        replace(SPEC, copy=None),
        replace(SPEC, low=None),
        replace(SPEC, residual=True),
    ]
    assert len({work(each).key for each in (SPEC, *others)}) == 5
    tuned = replace(work(SPEC), decisions={"rows": 2})
    assert tuned.key != work(SPEC).key
    assert tuned.family == "linear"
    packed = Kernel((SPEC, "keys", "x86"), "linear_keys_3x4x5", (None,), lambda: None)
    assert Work(Use(packed, 1, ()), {}).family == "linear"


def test_every_kernel_of_an_integer_module_is_of_one_site_or_of_the_rest():
    _, _, mod = uniform(asked(), W8A8)
    macs = {"norm1": 0, "fc1": 10, "gelu.0": 0, "fc2": 20, "norm2": 0, "head": 30}
    found = Parts(NATIVE, 1).integer(mod, macs, frozenset())
    assert set(found.sites) == macs.keys() - {"gelu.0"}  # a table inside of fc1's kernel
    assert [sum(w.macs for w in found.sites[site]) for site in ("fc1", "fc2", "head")] == [10, 20, 30]
    assert all(w.constant_bytes >= WIDTH * 16 for site in ("fc1", "fc2", "head") for w in found.sites[site])
    assert found.calls == 5 + len(found.rest)
    assert not any("quantize" in w.use.kernel.name for w in found.rest)  # what it costs is an edge's


def test_float_sites_that_differ_in_weights_only_are_the_same_kernel():
    parts, mod = Parts(NATIVE, 1), module()
    first, second = (parts.floats(mod, [name], 0) for name in ("norm1", "norm2"))
    assert [w.key for w in first] == [w.key for w in second]
    linear = parts.floats(mod, ["fc1", "fc1.bias"], 7)
    assert [w.macs for w in linear] == [7]
    assert sum(w.constant_bytes for w in linear) >= 4 * 4 * WIDTH * (WIDTH + 1)


@pytest.mark.parametrize("groups", [1, 24])
def test_a_float_convolution_is_its_kernel_without_what_its_layout_moves(groups: int):
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((1, 24, 9, 9), "float32"))
    y = make.bind("conv", op.nn.conv2d(x, make.constant(24, 24 // groups, 3, 3), groups=groups))
    mod = make.module([x], make.bind("conv.bias", op.add(y, make.constant(1, 24, 1, 1))))
    (found,) = Parts(NATIVE, 1).floats(mod, ["conv", "conv.bias"], 11)
    assert found.family == ("float_conv2d" if groups == 1 else "float_depthwise")
    assert found.macs == 11
    assert found.constant_bytes >= 4 * 24 * (9 * 24 // groups + 1)


@pytest.mark.parametrize(("to_float", "dtype"), [(False, "uint8"), (True, "int16")])
def test_a_conversion_is_one_kernel_of_the_shape_asked_for(to_float: bool, dtype: str):
    (found,) = Parts(NATIVE, 1).conversion((2, 5, 7), dtype, to_float=to_float)
    shapes = [tuple(int(d) for d in p.shape) for p in found.use.kernel.function().params]
    assert shapes == [(2, 5, 7)] * 2


def normalised(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, (WIDTH,))


def test_a_module_cut_apart_computes_what_is_left():
    mod = module()
    several = [b for b in bindings(mod["main"]) if b.var.name in ("fc1", "fc1.bias")]
    alone = isolated(mod, several)
    assert [p.name for p in alone["main"].params] == ["p0"]
    assert len(isolated(mod, several, constants=False)["main"].params) == 3
    cut = without(mod, {"fc1"})
    assert "fc1" not in {str(b.var.name) for b in bindings(cut["main"])}
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, ROWS, WIDTH), np.float32))
    weight, bias = (torch.from_numpy(np.array(b.value.args[1].value.numpy())) for b in several)
    (found,) = reference.run(alone, [x])
    torch.testing.assert_close(found, x @ weight + bias)
    (whole,), (left,) = reference.run(mod, [x]), reference.run(cut, [x, normalised(x) @ weight])
    torch.testing.assert_close(left, whole)


def test_peak_memory_counts_what_lives_at_one_time():
    values = np.zeros((ROWS, WIDTH), np.float32).nbytes
    # fc1, its bias and gelu: two of four times the width at a time, x being an input.
    assert peak_bytes(module()["main"]) == 8 * values
