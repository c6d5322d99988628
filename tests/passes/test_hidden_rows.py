import numpy as np
import pytest
import torch
from tvm import relax

from tvmq import reference
from tvmq.passes.hidden_rows import hiding_choice, rows_shown, zero_hidden_rows
from tvmq.passes.rebuild import op_name, rebuild


def masked(hidden: float):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 2, 4), "float32"))
    seen = relax.Var("seen", relax.TensorType((1, 1, 3, 5), "bool"))
    with builder.function("main", [x, seen]):
        with builder.dataflow():
            mask = builder.emit(
                relax.op.where(seen, relax.const(np.float32(0)), relax.const(np.float32(hidden)))
            )
            out = builder.emit_output(relax.Tuple([builder.emit(relax.op.nn.relu(x)), mask]))
        builder.emit_func_output(out)
    return builder.get()


def test_rows_without_anything_seen_are_zero():
    mod = masked(-np.inf)
    seen = mod["main"].params[1]

    def hide(graph, var, value):
        return zero_hidden_rows(graph, value.args[0], seen) if op_name(value) == "nn.relu" else None

    shown = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[None, None]
    out = reference.run(rebuild(mod, hide), [torch.ones(1, 3, 2, 4), shown])[0]
    assert out[0].sum(dim=(1, 2)).tolist() == [8, 0, 8]


@pytest.mark.parametrize("hidden", [-np.inf, -1e30])
def test_only_minus_infinity_hides(hidden):
    choices = []

    def look(graph, var, value):
        if isinstance(value, relax.Tuple):
            choices.append(hiding_choice(graph, value.fields[1]))

    rebuild(masked(hidden), look)
    assert (choices[0] is not None) == (hidden == -np.inf)


def test_the_condition_of_hidden_rows_is_recognised():
    mod = masked(-np.inf)
    seen, found = mod["main"].params[1], []

    def hide(graph, var, value):
        if op_name(value) != "nn.relu":
            return None
        answer = zero_hidden_rows(graph, value.args[0], seen)
        where = graph.value(answer)
        found.append(rows_shown(graph.value, where.args[0]))
        found.append(rows_shown(graph.value, seen))
        return answer

    rebuild(mod, hide)
    assert found[0].same_as(seen)
    assert found[1] is None
