from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import assert_untouched, const
from tvmq.passes.name_values import NameValues
from tvmq.passes.rebuild import bindings

W, B = const(4, 4), const(4, seed=1)


def test_sites_keep_their_path_and_the_rest_say_what_they_are():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 4), "float32"))
    linears = {}
    with builder.function("main", [x]):
        with builder.dataflow():
            for part in ("qkv.q", "qkv.k", "qkv.v", "qkv.v"):
                linear = builder.emit(relax.op.matmul(x, W), f"attn.{part}")
                biased = builder.emit(relax.op.add(linear, B))
                linears[part] = builder.emit(relax.op.reshape(biased, (1, 3, 2, 2)))
            y = builder.emit(relax.op.nn.attention(*list(linears.values())))
            out = builder.emit_output(relax.op.add(y, linears["qkv.v"]))
        builder.emit_func_output(out)
    # The builder writes underscores for dots; the frontends do not.
    from tvmq.passes.rebuild import rename

    mod = builder.get()
    dotted = {b.var: b.var.name.replace("_", ".") for b in bindings(mod["main"])}
    mod["main"] = rename(mod["main"], dotted)
    after = NameValues()(mod)
    names = [str(b.var.name) for b in bindings(after["main"])]
    assert names[:3] == ["attn.qkv.q", "attn.qkv.q.bias", "reshape.0"]
    assert len(set(names)) == len(names)
    assert names[-2:] == ["attn", "add.4"]
    assert_untouched(after, NameValues())


def test_ordinals_count_each_operator_and_a_numbered_path_is_a_path():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 4), "float32")) -> R.Tensor((3, 4), "float32"):
            with R.dataflow():
                lv = R.matmul(x, W)
                lv1 = R.nn.relu(lv)
                features = R.matmul(lv1, W)
                lv3 = R.nn.relu(features)
                R.output(lv3)
            return lv3

    from tvmq.passes.rebuild import rename

    var = bindings(Before["main"])[2].var
    Before["main"] = rename(Before["main"], {var: "features.0"})
    names = [str(b.var.name) for b in bindings(NameValues()(Before)["main"])]
    assert names == ["matmul.0", "relu.0", "features.0", "relu.1"]


def test_a_chain_of_element_wise_operators_is_called_a_table():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 4), "float32")) -> R.Tensor((3, 4), "float32"):
            with R.dataflow():
                lv = R.add(x, R.const(3.0, "float32"))
                lv1 = R.clip(lv, 0, 6)
                lv2 = R.multiply(x, lv1)
                lv3 = R.nn.softmax(lv2)
                R.output(lv3)
            return lv3

    after = NameValues()(Before)
    assert [str(b.var.name) for b in bindings(after["main"])] == ["add.0", "clip.0", "table.0", "softmax.0"]
    assert_untouched(after, NameValues())
