import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tune import synthetic
from tests.tune.synthetic import SPACE, CostBench, cost, kernel, session, tuned
from tvmq.errors import BusyMachineWarning
from tvmq.neighbours import Neighbours
from tvmq.tune.database import CRASHES, Database, point
from tvmq.tune.measure import BrokenCandidateError
from tvmq.tune.results import TuningInterrupted
from tvmq.tune.session import ATTEMPTS

BEST = {"rows": 11, "columns": 5, "outer": "columns"}
ROOT = Path(__file__).parents[2]


def test_search_comes_close_to_the_best_of_a_cost_function(tmp_path: Path):
    (found,) = tuned(tmp_path / "db", trials=64)
    assert found.trials == 64
    least, default = (1e6 * cost(kernel(), d) for d in (BEST, SPACE.default))
    assert found.us <= least + 0.05 * (default - least)
    assert found.default_us == pytest.approx(default)
    history = Database(tmp_path / "db", synthetic.HERE).history(found.kernel)
    assert all(dict(at)["rows"] == 7 for at in history.failed)


def test_a_second_run_goes_on_and_repeats_nothing(tmp_path: Path):
    benches: list[CostBench] = []

    def counted(use):
        benches.append(CostBench(use))
        return benches[-1]

    (first,) = tuned(tmp_path / "db", trials=20, benches=counted)
    (second,) = tuned(tmp_path / "db", trials=50, benches=counted)
    assert [bench.calls for bench in benches] == [20, 30]
    assert second.us <= first.us
    size = (tmp_path / "db").stat().st_size
    assert tuned(tmp_path / "db", trials=50, benches=counted) == (second,)
    assert tuned(tmp_path / "db", trials=0, benches=counted) == (second,)
    assert (len(benches), (tmp_path / "db").stat().st_size) == (2, size)


def test_without_records_no_trials_mean_the_default(tmp_path: Path):
    (found,) = tuned(tmp_path / "db", trials=0)
    assert (found.decisions, found.us, found.trials) == (None, None, 0)
    assert not (tmp_path / "db").exists()


def test_records_of_another_target_are_not_used(tmp_path: Path):
    tuned(tmp_path / "db", trials=20)
    other = synthetic.Setting("x86_avx512_vnni", "a CPU", 2, "today's")
    (found,) = tuned(tmp_path / "db", trials=0, setting=other)
    assert found.decisions is None


def test_a_gain_within_the_margin_is_none(tmp_path: Path):
    class Even(CostBench):
        def final(self, finalists):
            return [100e-6, *(99.5e-6 for _ in finalists)]

    (found,) = tuned(tmp_path / "db", trials=16, benches=Even)
    assert found.decisions is None
    assert found.us == found.default_us == pytest.approx(100)


def test_time_ends_a_session_and_most_goes_where_most_is_won(tmp_path: Path):
    clock = iter(range(10_000))
    kernels = [kernel(2), kernel(14)]  # the default, 1 row, is 3 us from the best of the first
    found = session(tmp_path / "db", *kernels, trials=300, minutes=2, now=lambda: next(clock)).run()
    spent = [result.trials for result in found]
    assert 40 < sum(spent) < 120
    assert spent[1] > spent[0] > 0


def test_progress_counts_every_trial(tmp_path: Path):
    seen = []
    tuned(tmp_path / "db", trials=12, progress=lambda *report: seen.append(report))
    assert seen[:2] == [("tune", 0, 12), ("tune", 1, 12)]
    assert seen[-1] == ("tune", 12, 12)


def test_ctrl_c_ends_after_the_trial_and_says_what_is_kept(tmp_path: Path):
    class Interrupted(CostBench):
        def trial(self, decisions):
            if self.calls == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().trial(decisions)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TuningInterrupted, match=r"5 trials so far are kept in .*db, the same call goes on"):
        tuned(tmp_path / "db", trials=30, benches=Interrupted)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(Database(tmp_path / "db", synthetic.HERE).history(kernel().semantics).tried) == 5


def test_a_second_ctrl_c_cuts_the_trial_and_counts_against_nothing(tmp_path: Path):
    path = tmp_path / "db"
    tuned(path, trials=4)

    class Cut(CostBench):
        def trial(self, decisions):
            os.kill(os.getpid(), signal.SIGINT)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:  # TVM makes it an error of its own, and KernelBench that one
                raise BrokenCandidateError(decisions, "RuntimeError") from None

    before = Database(path, synthetic.HERE).history(kernel().semantics)
    for _ in range(CRASHES):
        with pytest.raises(TuningInterrupted, match=r"4 trials so far are kept in .*db"):
            tuned(path, trials=12, benches=Cut)
    assert path.read_bytes().count(b'{"event": "interrupted"') == CRASHES
    history = Database(path, synthetic.HERE).history(kernel().semantics)
    assert (history.tried, history.failed) == (before.tried, before.failed)


def test_a_finalist_that_breaks_makes_room_for_the_next(tmp_path: Path):
    broken = []

    class Moody(CostBench):
        def final(self, finalists):
            if len(broken) < 2:
                broken.append(finalists[0])
                raise BrokenCandidateError(finalists[0], "other bits")
            return super().final(finalists)

    (found,) = tuned(tmp_path / "db", trials=30, benches=Moody)
    history = Database(tmp_path / "db", synthetic.HERE).history(found.kernel)
    assert {point(d) for d in broken} <= history.failed
    assert found.decisions == history.best(1)[0]
    assert found.us == pytest.approx(1e6 * cost(kernel(), found.decisions))


def test_where_every_finalist_breaks_nothing_is_chosen(tmp_path: Path):
    class Broken(CostBench):
        def final(self, finalists):
            raise BrokenCandidateError(finalists[0], "other bits")

    (found,) = tuned(tmp_path / "db", trials=10, benches=Broken)
    assert (found.decisions, found.us, found.default_us, found.trials) == (None, None, None, 10)
    assert b'"event": "chosen"' not in (tmp_path / "db").read_bytes()


SLOW_TUNING = """
import sys, time
from pathlib import Path
from tests.tune import synthetic
class Slow(synthetic.CostBench):
    def trial(self, decisions):
        time.sleep(0.02)
        return super().trial(decisions)
print("ready", flush=True)
synthetic.tuned(Path(sys.argv[1]), trials=len(list(synthetic.SPACE)), benches=Slow)
"""


@pytest.mark.slow
def test_a_tune_killed_in_the_middle_ends_with_the_same_best(tmp_path: Path):
    path, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TUNING, str(path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not path.exists() or path.read_bytes().count(b"\n") < 31:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    every = len(list(SPACE))
    lines = path.read_bytes().splitlines()
    measured = [line for line in lines if line.startswith((b'{"event": "measured"', b'{"event": "failed"'))]
    assert 10 < len(measured) < every
    benches: list[CostBench] = []

    def counted(use):
        benches.append(CostBench(use))
        return benches[-1]

    (resumed,) = tuned(path, trials=every, benches=counted)
    (wanted,) = tuned(whole, trials=every)
    assert resumed == wanted
    assert resumed.decisions == BEST
    assert benches[0].calls == every - len(measured)
    assert path.read_bytes().count(b'{"event": "chosen"') == 1


class Crowd(Neighbours):
    """Others are there as long as `comparisons` says."""

    comparisons = 0

    def crowd(self, threads: int) -> bool:
        Crowd.comparisons -= 1
        return Crowd.comparisons >= 0


def test_on_a_busy_machine_the_default_stays_until_it_is_idle(tmp_path: Path):
    Crowd.comparisons = ATTEMPTS
    with pytest.warns(BusyMachineWarning, match="1 kernel keeps the default; the trials are in"):
        (found,) = tuned(tmp_path / "db", trials=20, neighbours=Crowd)
    assert (found.decisions, found.trials) == (None, 20)
    Crowd.comparisons = ATTEMPTS - 1  # the last attempt is undisturbed
    (found,) = tuned(tmp_path / "db", trials=20, neighbours=Crowd)
    assert found.decisions is not None
    assert found.us < found.default_us
