import errno
import itertools
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tune.synthetic import HERE
from tvmq.errors import UsageError
from tvmq.gpu import Gpu, Gpus
from tvmq.schedule.isa import TILE_PRODUCT, isa_of
from tvmq.target import load_profile
from tvmq.tune import database as module
from tvmq.tune.database import CRASHES, Database, Event, point, setting_of

FEW, MANY = {"rows": 1, "outer": "rows"}, {"rows": 6, "outer": "rows"}


def filled(path: Path, setting: Any = HERE) -> Database:
    found = Database(path, setting)
    found.append(Event.BEGAN, "k", FEW)
    found.append(Event.MEASURED, "k", FEW, us=10.0, default_us=8.0)
    found.append(Event.MEASURED, "k", MANY, us=5.0, default_us=8.0)
    found.append(Event.CHOSEN, "k", MANY, us=5.0, default_us=8.0, trials=2)
    return found


def test_what_was_written_is_read_again(tmp_path: Path):
    path = tmp_path / "demand.jsonl"
    written = filled(path).history("k")
    read = Database(path, HERE).history("k")
    assert read == written
    assert read.best(2) == [MANY, FEW]
    assert read.chosen.decisions == MANY
    assert read.tried == {point(FEW), point(MANY)}
    assert Database(path, HERE).history("another kernel").tried == set()


@pytest.mark.parametrize(
    "other",
    [
        {"target": "x86_avx512_vnni"}, {"cpu": "another CPU"}, {"threads": 1}, {"versions": "yesterday's"},
    ],
)  # fmt: skip
def test_a_record_of_another_setting_is_never_used(tmp_path: Path, other: dict[str, Any]):
    filled(tmp_path / "db", replace(HERE, **other))
    history = Database(tmp_path / "db", HERE).history("k")
    assert (history.tried, history.best(3), history.chosen) == (set(), [], None)


def test_a_setting_tells_targets_threads_and_kernel_sources_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    profiles = [load_profile(name) for name in ("x86_avx2", "x86_avx512_vnni")]
    renamed = replace(profiles[1], tvm_target={**profiles[1].tvm_target, "mcpu": "znver5"})
    settings = [setting_of(p, threads) for p in (*profiles, renamed) for threads in (1, 2)]
    (tmp_path / "kernel.py").write_text("changed = True")
    monkeypatch.setattr(module, "_sources", lambda: (tmp_path / "kernel.py",))
    settings.append(setting_of(profiles[0], 1))
    assert len(set(settings)) == 7
    assert setting_of(profiles[0], 1) == settings[-1]


def test_a_setting_tells_instruction_sets_of_one_target_apart():
    vbmi, amx = load_profile("x86_avx512_vbmi"), load_profile("x86_amx")
    features = vbmi.features - {"avx512vbmi", "avx512_vbmi"}
    others = (
        replace(vbmi, features=features),
        amx,
        replace(amx, kernels=tuple(k for k in amx.kernels if k.intrinsic != TILE_PRODUCT)),
    )
    assert len({isa_of(profile).name for profile in (vbmi, others[0])}) == 2
    assert len({isa_of(profile).name for profile in others[1:]}) == 2
    assert len({setting_of(profile, 1) for profile in (vbmi, *others)}) == 4


def test_a_setting_tells_gpus_and_all_that_their_kernels_are_made_of_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    t4, a100, ampere = (load_profile(name) for name in ("t4", "a100", "rtx"))
    monkeypatch.setattr(module, "these_gpus", lambda: Gpus((Gpu("A", (7, 5), 13), Gpu("B", (8, 0), 13))))
    settings = [setting_of(p, 1) for p in (t4, a100)] + [
        setting_of(t4, 1, "another T4"),
        setting_of(ampere, 1),
    ]
    assert [setting.cpu for setting in settings] == ["A", "B", "another T4", "no GPU"]
    assert setting_of(t4, 1) == setting_of(t4, 8)
    fewer = replace(t4, machine=replace(t4.machine, processors=8))
    settings.append(setting_of(fewer, 1))
    monkeypatch.setattr(module, "compiler_version", lambda _: "12.0")
    settings.append(setting_of(t4, 1))
    assert {"product.cuh", "product.py"} <= {path.name for path in module._gpu_sources()}
    (tmp_path / "product.cuh").write_text("// changed")
    cpu = setting_of(load_profile("x86_avx2"), 1)
    monkeypatch.setattr(module, "_gpu_sources", lambda: (tmp_path / "product.cuh",))
    settings.append(setting_of(t4, 1))
    assert len(set(settings)) == 7
    assert setting_of(load_profile("x86_avx2"), 1) == cpu


def test_a_setting_depends_on_all_that_kernels_are_made_of():
    imported = {
        module.PACKAGE / (name.replace(".", "/") + ".py")
        for path in module.PACKAGE.glob("schedule/*.py")
        if re.search(r"^def \w+_prim_func", path.read_text(), re.M)
        for name in re.findall(r"^from tvmq\.([\w.]+) import", path.read_text(), re.M)
    } - {module.PACKAGE / "schedule.py", module.PACKAGE / "target.py"}
    assert module.PACKAGE / "numerics.py" in imported
    assert imported <= set(module._sources())


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_torn_last_line_is_skipped_and_the_next_one_stands_alone(tmp_path: Path, cut: int):
    path = tmp_path / "db"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    torn = Database(path, HERE)
    assert torn.history("k").chosen is None or cut == 1
    torn.append(Event.FAILED, "k", FEW, why="other bits")
    history = Database(path, HERE).history("k")
    assert history.best(3) == [MANY]
    assert history.tried == {point(FEW), point(MANY)}


def test_joined_files_say_the_same_in_any_order(tmp_path: Path):
    lines = []
    for name, events in {
        "a": [(Event.MEASURED, FEW, 9.0), (Event.CHOSEN, FEW, 9.0), (Event.FAILED, {"rows": 2}, 1.0)],
        "b": [(Event.MEASURED, FEW, 7.0), (Event.MEASURED, MANY, 6.0), (Event.CHOSEN, MANY, 6.0)],
    }.items():
        one = Database(tmp_path / name, HERE)
        for number, (event, decisions, us) in enumerate(events):
            one.append(event, "k", decisions, us=us, default_us=8.0, trials=number)
        one.append(Event.MEASURED, "k", {"rows": 2}, us=1.0, default_us=8.0)
        lines.append((tmp_path / name).read_bytes())
    histories = []
    for order in itertools.permutations(lines):
        (tmp_path / "both").write_bytes(b"".join(order))
        histories.append(Database(tmp_path / "both", HERE).history("k"))
    assert histories[0] == histories[1]
    assert histories[0].best(9) == [MANY, FEW]  # what failed once is never the best
    assert histories[0].measured[point(FEW)].us == 7.0
    assert histories[0].chosen.decisions == MANY


def test_a_trial_that_took_its_process_with_it_twice_is_not_tried_again(tmp_path: Path):
    found = Database(tmp_path / "db", HERE)
    found.append(Event.BEGAN, "k", FEW)  # killed
    (tmp_path / "torn").write_bytes((tmp_path / "db").read_bytes()[:30])
    assert Database(tmp_path / "torn", HERE).history("k").tried == set()
    assert Database(tmp_path / "db", HERE).history("k").tried == set()
    found.append(Event.BEGAN, "k", FEW)
    assert Database(tmp_path / "db", HERE).history("k").tried == {point(FEW)}
    assert Database(tmp_path / "db", HERE).history("k").best(1) == []


def test_a_trial_that_the_user_cut_short_is_tried_again(tmp_path: Path):
    found = Database(tmp_path / "db", HERE)
    for _ in range(CRASHES):
        found.append(Event.BEGAN, "k", FEW)
        found.append(Event.INTERRUPTED, "k", FEW)
    assert Database(tmp_path / "db", HERE).history("k").tried == found.history("k").tried == set()


def test_what_failed_is_no_choice_in_any_order(tmp_path: Path):
    filled(tmp_path / "db").append(Event.FAILED, "k", MANY, why="other bits")
    lines = (tmp_path / "db").read_bytes().splitlines(keepends=True)
    for order in (lines, lines[::-1]):
        (tmp_path / "db").write_bytes(b"".join(order))
        history = Database(tmp_path / "db", HERE).history("k")
        assert (history.chosen, history.best(3)) == (None, [FEW])


@pytest.mark.parametrize(
    "change",
    [
        {"decisions": {"rows": [1], "outer": "rows"}}, {"decisions": {"rows": 1.0}}, {"us": math.nan},
        {"us": -1.0}, {"us": 0}, {"default_us": math.inf}, {"decisions": {"rows": None}},
    ],
)  # fmt: skip
def test_lines_that_no_tuning_writes_are_skipped(tmp_path: Path, change: dict[str, Any]):
    filled(tmp_path / "db")
    line = json.loads((tmp_path / "db").read_bytes().splitlines()[1])
    with (tmp_path / "db").open("a") as file:
        file.write(json.dumps({**line, "decisions": {"rows": 2, "outer": "rows"}, **change}) + "\n")
    assert Database(tmp_path / "db", HERE).history("k").best(9) == [MANY, FEW]


def test_decisions_of_unlike_kinds_can_be_ranked(tmp_path: Path):
    found = Database(tmp_path / "db", HERE)
    for value in (1, "1"):
        found.append(Event.MEASURED, "k", {"rows": value}, us=1.0, default_us=1.0)
    assert len(found.history("k").best(2)) == 2


def test_a_full_disk_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, write, room = Database(tmp_path / "db", HERE), os.write, [400]

    def short(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(handle, data[: min(100, room[0])])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", short)
    found.append(Event.MEASURED, "k", FEW, us=1.0, default_us=1.0)
    assert Database(tmp_path / "db", HERE).history("k").best(1) == [FEW]
    with pytest.raises(UsageError, match=r"db: cannot be written \(No space left on device\)"):
        found.append(Event.MEASURED, "k", MANY, us=1.0, default_us=1.0)
    assert found.history("k").best(9) == Database(tmp_path / "db", HERE).history("k").best(9) == [FEW]


def test_files_that_are_no_database_are_refused(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 no JSON")
    with pytest.raises(UsageError, match="not one line of it is a tuning record"):
        Database(tmp_path / "photo.jpg", HERE)
    with pytest.raises(UsageError, match="cannot be read"):
        Database(tmp_path, HERE)
    empty = Database(tmp_path / "folder", HERE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        empty.append(Event.BEGAN, "k", FEW)
    with pytest.raises(UsageError, match="cannot be written"):
        empty.require_writable()
    absent = Database(tmp_path / "new" / "db", HERE)
    with pytest.raises(UsageError, match=r"folder '.*new' does not exist; create it first"):
        absent.require_writable()
    assert not (tmp_path / "new").exists()
    newer = json.dumps({"event": "measured", "format": 2})
    filled(tmp_path / "db")
    with (tmp_path / "db").open("a") as file:
        file.write(newer + "\n[[1\n")
    assert Database(tmp_path / "db", HERE).history("k").best(1) == [MANY]
