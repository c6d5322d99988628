from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.golden import const
from tvmq.passes.rebuild import bindings, op_name, rebuild, rename, shape_of

W = const(4)


@I.ir_module
class Mod:
    @R.function
    def main(x: R.Tensor((3, 4), "float32")) -> R.Tensor((3, 4), "float32"):
        with R.dataflow():
            unused = R.exp(x)  # noqa: F841
            lv = R.add(x, W)
            lv1 = R.nn.relu(lv)
            R.output(lv1)
        return lv1


def test_dead_bindings_go_and_live_ones_keep_their_objects():
    after = rebuild(Mod, lambda graph, var, value: None)
    kept, old = bindings(after["main"]), bindings(Mod["main"])
    assert [b.var.name for b in kept] == ["lv", "lv1"]
    assert kept[0].var.same_as(old[1].var)
    assert kept[0].value.same_as(old[1].value)
    assert rebuild(after, lambda graph, var, value: None) is after


def test_an_output_may_be_replaced_by_an_inner_value():
    def drop_relu(graph, var, value):
        return value.args[0] if op_name(value) == "nn.relu" else None

    after = rebuild(Mod, drop_relu)
    relax.analysis.well_formed(after)
    assert [op_name(b.value) for b in bindings(after["main"])] == ["add"]


def test_rules_see_rewritten_operands_and_their_readers():
    seen = []

    def look(graph, var, value):
        if op_name(value) == "nn.relu":
            seen.append((op_name(graph.call(value.args[0], "add")), graph.uses(value.args[0])))

    rebuild(Mod, look)
    assert seen == [("add", 1)]
    assert shape_of(bindings(Mod["main"])[1].var) == (3, 4)


def test_rename_reaches_every_reader():
    func = Mod["main"]
    after = rename(func, {bindings(func)[1].var: "trunk"})
    assert [b.var.name for b in bindings(after)] == ["unused", "trunk", "lv1"]
    assert bindings(after)[2].value.args[0].name == "trunk"
    assert rename(func, {}) is func
