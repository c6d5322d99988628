from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cost.tiny import NATIVE, asked, store_in
from tvmq.cost import table as module
from tvmq.cost.measure import Times
from tvmq.cost.roofline import features, roofline_us
from tvmq.cost.store import Store
from tvmq.cost.table import cost_table, fingerprint
from tvmq.errors import BusyMachineWarning, UsageError
from tvmq.neighbours import Neighbours
from tvmq.plan.cost_table import CostTable
from tvmq.spec import Precision
from tvmq.target import load_profile

W4A8 = Precision(4, 8)


class Clock:
    """A Timer that gives every kernel its place in the order of asking, and counts."""

    asked = 0

    def __init__(self, profile: Any, constants_from: str) -> None:
        assert constants_from == "l3"

    def times(self, works: Any) -> list[Times]:
        Clock.asked += len(works)
        return [Times(10.0, 0.1, 9) for _ in works]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    Clock.asked = 0
    monkeypatch.setattr(module, "Timer", Clock)
    return Clock


class Alone(Neighbours):
    """No one else has anything to do."""

    def crowd(self, threads: int) -> bool:
        return False


class Crowd(Neighbours):
    def crowd(self, threads: int) -> bool:
        return True


def of(store: Store, *, neighbours: type[Neighbours] = Alone, **options: Any) -> CostTable:
    return cost_table(asked(), NATIVE, [W4A8], store, threads=1, neighbours=neighbours, **options)


def test_each_kernel_is_measured_once_and_found_again(tmp_path: Path, clock: type[Clock]):
    first = of(store_in(tmp_path, measure=True))
    measured = clock.asked
    assert measured == len(store_in(tmp_path, measure=False).lines)
    assert {cost.source for cost in first.sites} == {"measured"}
    assert first.of["norm1", "w8a8"].ms == first.of["norm2", "w8a8"].ms == pytest.approx(0.01)
    assert first.of["gelu.0", "w8a8"].ms == 0.0
    again = of(store_in(tmp_path, measure=True))
    assert (again, clock.asked) == (first, measured)
    assert first.device == fingerprint(store_in(tmp_path, measure=False).setting)


def test_what_other_programs_disturbed_is_said_and_measured_again_without_them(
    tmp_path: Path, clock: type[Clock]
):
    with pytest.warns(BusyMachineWarning, match="cost: other programs had the cores while [0-9]+ of"):
        of(store_in(tmp_path, measure=True), neighbours=Crowd)
    kernels = clock.asked
    with pytest.warns(BusyMachineWarning):
        of(store_in(tmp_path, measure=True), neighbours=Crowd)
    assert clock.asked == kernels
    of(store_in(tmp_path, measure=True))
    of(store_in(tmp_path, measure=True))
    assert clock.asked == 2 * kernels


def test_a_disturbed_time_that_cannot_be_true_is_not_taken(
    tmp_path: Path, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Clock, "times", lambda _self, works: [Times(5000.0, 0.1, 9) for _ in works])
    with pytest.warns(BusyMachineWarning):
        found = of(store_in(tmp_path, measure=True), neighbours=Crowd)
    assert {cost.source for cost in found.sites if cost.ms} == {"roofline"}
    alone = of(store_in(tmp_path, measure=True))
    assert {cost.source for cost in alone.sites if cost.ms} == {"measured"}


def test_a_disturbed_time_of_loops_is_believed_for_longer(
    tmp_path: Path, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
):
    def slow(_self: Clock, works: Any) -> list[Times]:
        return [Times(60 * roofline_us(features(work, 1), NATIVE, "l3"), 0.1, 9) for work in works]

    monkeypatch.setattr(Clock, "times", slow)
    with pytest.warns(BusyMachineWarning):
        found = of(store_in(tmp_path, measure=True), neighbours=Crowd).of
    assert (found["gelu.0", "float"].source, found["fc1", "w8a8"].source) == ("measured", "roofline")


def test_what_takes_far_longer_than_its_like_is_timed_once_more(
    tmp_path: Path, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
):
    store = store_in(tmp_path, measure=True)
    of(store)
    linear = next(line for line in store.lines if line.family == "linear")
    disturbed = Store(tmp_path / "disturbed.jsonl", store.setting)
    for number in range(20):
        disturbed.append(replace(linear, cost=f"another product {number}"))
    slow = {"fc1": 1000.0}

    def times(_self: Clock, works: Any) -> list[Times]:
        clock.asked += len(works)
        names = [work.key == linear.cost.removesuffix(" constants from l3") for work in works]
        return [Times(slow.pop("fc1", 10.0) if own else 10.0, 0.1, 9) for own in names]

    monkeypatch.setattr(Clock, "times", times)
    clock.asked = 0
    of(disturbed)
    assert not slow
    assert disturbed[linear.cost].us == 10.0
    asked_once = clock.asked
    of(disturbed)
    assert clock.asked == asked_once


def test_only_what_was_measured_by_the_same_code_on_the_same_machine_counts(
    tmp_path: Path, clock: type[Clock]
):
    store = store_in(tmp_path, measure=True)
    of(store)
    elsewhere = Store(store.path, replace(store.setting, cpu="another CPU"))
    found = of(elsewhere, measure=False)
    assert {cost.source for cost in found.sites} == {"roofline"}
    assert found.device == ""


def test_what_a_store_lacks_is_predicted_from_its_kind_else_estimated(tmp_path: Path, clock: type[Clock]):
    store = store_in(tmp_path, measure=True)
    of(store)
    linear = next(line for line in store.lines if line.family == "linear")
    partial = Store(tmp_path / "partial.jsonl", store.setting)
    for number in range(9):
        partial.append(replace(linear, cost=f"another product {number}"))
    found = of(partial, measure=False)
    assert {found.of[site, "w8a8"].source for site in ("fc1", "fc2", "head")} == {"predicted"}
    assert {found.of[site, "w8a8"].source for site in ("norm1", "norm2", "gelu.0")} == {"roofline"}
    assert found.of["fc1", "float"].source == "roofline"
    assert found.of["fc1", "w8a8"].spread == 0.0
    assert clock.asked == len(store.lines)  # nothing was measured for it


def test_a_plan_costs_its_sites_and_the_changes_of_form_between_them(tmp_path: Path, clock: type[Clock]):
    table = of(store_in(tmp_path, measure=True))
    names = dict.fromkeys([cost.site for cost in table.sites], "w8a8")
    integer = table.ms(names)
    values = {value.name: value for value in table.values}
    assert integer == pytest.approx(
        table.fixed_ms + values["x"].from_float + sum(table.of[n, "w8a8"].ms for n in names)
    )
    mixed = table.ms(names | {"fc1": "float"})
    change = table.of["fc1", "float"].ms - table.of["fc1", "w8a8"].ms
    between = values["norm1"].readings[0].to_float + values["fc1.bias"].from_float
    assert mixed == pytest.approx(integer + change + between)


def test_a_machine_that_cannot_run_the_code_measures_nothing(tmp_path: Path):
    other = load_profile("arm_dotprod")
    with pytest.raises(UsageError, match=r"cost: this machine lacks .*which 'arm_dotprod' needs"):
        module.open_store(tmp_path / "costs", other, 1, measure=True)
    store = module.open_store(tmp_path / "costs", other, 1, measure=False)
    assert not store.path.exists()
