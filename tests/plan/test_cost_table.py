from tvmq.plan.cost_table import CostTable, SiteCost, precision_name
from tvmq.plan.values import Reading, Value
from tvmq.spec import Precision


def test_a_table_survives_its_file_and_is_looked_up_by_site_and_precision():
    row = SiteCost("fc", precision_name(Precision(4, 8)), 0.5, 0.02, 128, "measured")
    table = CostTable(
        "ab",
        "x86_avx512_vnni",
        "cpu",
        2,
        (row,),
        (Value("x", (), (Reading(("fc",), (1, 4), 0.2),), from_float=0.1),),
        0.3,
        10,
    )
    again = CostTable.from_json(table.to_json())
    assert again == table
    assert again.of["fc", "w4a8"] == row
    assert precision_name(None) == "float"
