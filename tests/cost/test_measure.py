import numpy as np
from tvm.script import tirx as T

from tests.schedule.pool import pool_of
from tvmq.cost.measure import LINE, MAX_RUNS, MIN_RUNS, WARM_UPS, Timer
from tvmq.cost.works import Work
from tvmq.schedule.kernel import Kernel
from tvmq.schedule.kernel_table import Use
from tvmq.target import load_profile

SIZE = 1 << 13


def summing(times: int) -> Work:
    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((SIZE,), "int16"), weight: T.Buffer((SIZE,), "int8"), y: T.Buffer((SIZE,), "int16")):
        for _ in range(times):
            for i in range(SIZE):
                y[i] = x[i] + T.cast(weight[(i * 7919) % SIZE], "int16")

    kernel = Kernel(("sum", times), "sum", (None, None), lambda: main)
    return Work(Use(kernel, 1, (None, np.arange(SIZE, dtype="int8"))), {})


def test_times_grow_with_the_work_and_leave_out_the_call():
    with pool_of(1):
        timer = Timer(load_profile("native"), "l3")
        small, large = timer.times([summing(1), summing(40)])
        (alone,) = timer.times([summing(40)])
        overhead = 1e6 * timer._call(3)
    assert large.us > 10 * small.us
    assert 0.2 < large.us / alone.us < 5  # others may use the machine at the time
    assert 0 < overhead < 100
    assert all(MIN_RUNS <= times.runs <= MAX_RUNS for times in (small, large))
    assert small.spread >= 0


def test_constants_from_memory_are_new_in_every_run():
    profile = load_profile("native")
    with pool_of(1):
        timer = Timer(profile, "dram")
        (found,) = timer.times([summing(1)])
        run = timer._loaded(summing(1))
    assert len(run.lists) >= found.runs + WARM_UPS
    assert timer._far.nbytes > (profile.machine.l3_bytes or 0)


def test_every_core_forgets_what_it_held():
    with pool_of(2):
        timer = Timer(load_profile("native"), "l3")
        timer._prepare(timer._loaded(summing(1)))
        lines = load_profile("native").machine.l2_bytes // 4 // LINE
        assert timer._others[1].numpy()[:, 0].tolist() == [1 + lines] * 2


def test_constants_from_memory_have_more_copies_than_those_from_the_last_cache():
    with pool_of(1):
        counts = [
            len(Timer(load_profile("native"), level)._loaded(summing(1)).lists) for level in ("l3", "dram")
        ]
    assert counts[1] > counts[0] > 1
