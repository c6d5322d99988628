from tests import tiny_transformer
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import CostTable
from tvmq.plan.groups import site_groups
from tvmq.plan.memory import moments
from tvmq.plan.problem import Problem
from tvmq.plan.values import values_of

ROWS, WIDTH = tiny_transformer.TOKENS, tiny_transformer.WIDTH


def test_the_peak_of_a_transformer_is_where_its_mlp_is_widest():
    nodes, formats = tiny_transformer.nodes(), tiny_transformer.formats()
    groups = site_groups(nodes, assign_precisions(nodes, "17"), ())
    values = values_of(nodes, dict.fromkeys(nodes.parameters, tiny_transformer.SHAPE))
    found = moments(nodes, formats, values, nodes.parameters)
    losses = {(group.name, "w8a8"): 0.0 for group in groups}
    of = Problem(groups, losses, CostTable("17", "cpu", "", 1, (), values), found)

    def peak(**chosen: str) -> int:
        all_of = dict.fromkeys((group.name for group in groups), "w8a8") | chosen
        return of.assignment({**dict.fromkeys((g.name for g in groups), "w8a8"), **all_of}).memory

    floats = {group.name: "float" for group in groups}
    tokens = ROWS * WIDTH
    # In integers: GELU's codes beside the int16 trunk, and what fc1 read or fc2 gives.
    assert 4 * tokens + 2 * tokens <= peak() <= 4 * tokens + 4 * tokens + 4 * tokens
    assert peak(**floats) >= 16 * tokens + 4 * tokens
    assert peak() < peak(**{"blocks.0.fc1": "float"}) <= peak(**floats)
    # Points that others cover are left out.
    assert 0 < len(found) < len(nodes.by_name)
