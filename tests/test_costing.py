import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tvmq
from tests.cost.tiny import NATIVE, ROWS, WIDTH
from tvmq import costing
from tvmq.cli import main
from tvmq.costing import Costs
from tvmq.errors import CalibrationError, UsageError
from tvmq.plan.cost_table import CostTable
from tvmq.tune.database import Database, Event, setting_of


def test_the_command_estimates_a_machine_that_is_not_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))

    x = torch.randn(1, ROWS, WIDTH)
    torch.export.save(torch.export.export(Net().eval(), (x,)), tmp_path / "net.pt2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, ROWS, WIDTH), np.float32))
    command = f"cost {tmp_path / 'net.pt2'} --calibration {tmp_path / 'x.npy'}"
    command += f" --target arm_dotprod --bits w4a8,w3a8 --threads 1 --store {tmp_path / 'costs.jsonl'}"
    assert main([*command.split(), "--json"]) == 0
    out, err = capsys.readouterr()
    found = Costs.from_json(json.loads(out))
    assert found.held_out is None
    assert {cost.source for cost in found.table.sites} == {"roofline"}
    assert {name for site, name in found.table.of if site == "middle"} == {"float", "w8a8", "w4a8", "w3a8"}
    assert not (tmp_path / "costs.jsonl").exists()
    assert "take apart" in err
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    assert "estimated for arm_dotprod, 1 thread" in shown
    assert "All that can be in w8a8:" in shown


def test_the_decisions_of_the_tuning_database_are_priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = Database(tmp_path / "tuning.jsonl", setting_of(NATIVE, 1))
    database.append(Event.CHOSEN, "a kernel", {"lanes": 3}, us=1.0, default_us=2.0, trials=4)
    seen: list[dict[str, object]] = []

    def table(*_: object, decisions: dict[str, object], **__: object) -> CostTable:
        seen.append(dict(decisions))
        return CostTable("", "", "", 1, ())

    monkeypatch.setattr(costing, "cost_table", table)
    monkeypatch.setattr(costing, "subject", lambda *_, **__: None)
    options = {"calibration": [1], "threads": 1, "store": tmp_path / "costs.jsonl", "measure": False}
    net, x = torch.nn.Linear(4, 4), torch.zeros(1, 4)
    tvmq.costs(net, example_inputs=(x,), tune=tvmq.Tune(database=database.path), **options)
    tvmq.costs(net, example_inputs=(x,), **options)
    assert seen == [{"a kernel": {"lanes": 3}}, {}]


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(CalibrationError, match="none given"):
        tvmq.costs(torch.nn.Identity())
    with pytest.raises(UsageError, match="no widths are called that"):
        tvmq.costs(torch.nn.Identity(), bits=["w9a9"], calibration=[1])
