import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tune.synthetic import HERE
from tvmq.cost.store import Measured, Store, default_store
from tvmq.errors import UsageError

LINE = Measured("linear 1x2x3", HERE, "linear", 5.0, 0.1, 20, {"macs": 6.0}, False)


def test_what_was_measured_is_read_again_and_the_least_time_counts(tmp_path: Path):
    written = Store(tmp_path / "costs", HERE)
    for us in (5.0, 4.0, 7.0):
        written.append(replace(LINE, us=us))
    read = Store(tmp_path / "costs", HERE)
    assert read.lines == written.lines == (replace(LINE, us=4.0),)
    written.append(replace(LINE, us=1.0, crowded=True))
    assert Store(tmp_path / "costs", HERE).lines == read.lines  # what others disturbed says less
    assert LINE.cost in read
    assert "another" not in read


@pytest.mark.parametrize(
    "other",
    [{"target": "x86_avx512_vnni"}, {"cpu": "another CPU"}, {"threads": 1}, {"versions": "yesterday's"}],
)
def test_lines_of_another_machine_version_or_thread_count_are_never_used(
    tmp_path: Path, other: dict[str, Any]
):
    there = replace(HERE, **other)
    Store(tmp_path / "costs", there).append(replace(LINE, setting=there))
    found = Store(tmp_path / "costs", HERE)
    assert found.lines == ()
    assert LINE.cost not in found
    with pytest.raises(UsageError, match="another machine or version"):
        found.append(replace(LINE, setting=there))


def test_a_process_killed_while_it_writes_loses_at_most_the_last_line(tmp_path: Path):
    path = tmp_path / "costs"
    code = (
        "from dataclasses import replace; from pathlib import Path; from tvmq.cost.store import *\n"
        f"line = Measured.from_json({LINE.to_json()!r}); store = Store(Path({str(path)!r}), line.setting)\n"
        "for i in range(10**6): store.append(replace(line, cost=f'kernel {i}')); print(i, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(25)]
    os.kill(child.pid, signal.SIGKILL)
    said += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    found = Store(path, HERE)
    assert {f"kernel {i}" for i in said} <= {line.cost for line in found.lines}
    path.write_bytes(path.read_bytes()[:-7])  # and a line that was cut in two
    torn = Store(path, HERE)
    assert len(torn.lines) == len(found.lines) - 1
    torn.append(LINE)
    assert Store(path, HERE).lines[-1] == LINE


def test_other_files_and_other_times_are_refused(tmp_path: Path):
    (tmp_path / "tuning.jsonl").write_text('{"event": "began"}\n')
    with pytest.raises(UsageError, match="not one line of it is a cost record"):
        Store(tmp_path / "tuning.jsonl", HERE)
    with pytest.raises(ValueError, match="a finite time over 0"):
        replace(LINE, us=0.0)
    assert default_store().name == "costs.jsonl"
