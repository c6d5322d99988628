"""Sites take the name of the module whose weight reaches them."""

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.errors import UnsupportedModelError
from tvmq.frontend.naming import module_path, name_and_bind, name_sites


@I.ir_module
class Twice:
    @R.function
    def main(x: R.Tensor((2, 4), "float32"), w: R.Tensor((4, 4), "float32"), g: R.Tensor((4,), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            wt = R.permute_dims(w, axes=[1, 0])
            first = R.matmul(x, wt)
            scaled = R.multiply(first, g)
            pair = R.concat((first, scaled), axis=0)
            second = R.matmul(pair, wt)
            R.output(second)
        return second


@I.ir_module
class DecomposedNorm:
    @R.function
    def main(x: R.Tensor((2, 4), "float32"), g: R.Tensor((4,), "float32"), b: R.Tensor((4,), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            scaled = R.multiply(x, g)
            shifted = R.add(b, scaled)
            R.output(shifted)
        return shifted


@I.ir_module
class Branch:
    @R.function
    def main(x: R.Tensor((2,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((2,), "float32"):
        if c:  # noqa: SIM108, TVMScript has no ternary
            y = R.add(x, x)
        else:
            y = R.multiply(x, x)
        return y


def names(func):
    return [binding.var.name for binding in func.body.blocks[0].bindings]


def test_second_call_of_a_module_is_numbered_and_others_keep_their_names():
    named = name_sites(Twice["main"], {"w": "blocks.0.fc.weight", "g": "blocks.0.ls1.gamma"})
    assert names(named) == ["wt", "blocks.0.fc", "scaled", "pair", "blocks.0.fc.1"]
    tvm.ir.assert_structural_equal(named, Twice["main"])


def test_a_name_that_is_taken_is_numbered():
    assert names(name_sites(Twice["main"], {"w": "x.weight"}))[1] == "x.1"


def test_end_of_a_decomposed_layer_norm_has_its_path():
    full_names = {"g": "blocks.0.norm1.weight", "b": "blocks.0.norm1.bias"}
    assert names(name_sites(DecomposedNorm["main"], full_names)) == ["scaled", "blocks.0.norm1"]
    other = {"g": "blocks.0.norm1.weight", "b": "blocks.0.fc.bias"}
    assert names(name_sites(DecomposedNorm["main"], other)) == ["scaled", "shifted"]


def test_weights_become_constants():
    weights = [tvm.runtime.tensor(np.ones(shape, "float32")) for shape in ((4, 4), (4,))]
    mod = tvm.IRModule({"main": Twice["main"].with_attr("params", weights)})
    main = name_and_bind(mod, {"w": "fc.weight"})["main"]
    assert [param.name for param in main.params] == ["x"]
    assert "params" not in main.attrs
    assert "fc" in names(main)


@pytest.mark.parametrize(
    ("full_name", "path"),
    [
        ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv"),
        ("mha.in_proj_weight", "mha.in_proj"),
        ("attn.relative_position_bias_table", "attn.relative_position_bias_table"),
        ("weight", ""),
    ],
)
def test_module_path(full_name, path):
    assert module_path(full_name) == path


def test_control_flow_is_refused():
    with pytest.raises(UnsupportedModelError, match="control flow that depends on data"):
        name_sites(Branch["main"], {})
