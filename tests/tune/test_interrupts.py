import os
import signal
import threading

import pytest

from tvmq.tune.interrupts import Interrupts


def test_the_first_asks_and_the_second_cuts():
    before, found = signal.getsignal(signal.SIGINT), Interrupts()
    with found.caught():
        os.kill(os.getpid(), signal.SIGINT)
        assert (found.asked, found.cut) == (True, False)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (found.asked, found.cut) == (True, True)
    assert signal.getsignal(signal.SIGINT) is before


def test_only_a_cut_makes_an_error_an_interrupt():
    found = Interrupts()
    with pytest.raises(ValueError, match="no tile"), found.unmasked():
        raise ValueError("no tile")
    found.cut = True
    with pytest.raises(KeyboardInterrupt), found.unmasked():
        raise ValueError("a pass of TVM was interrupted")


def test_other_threads_take_no_signals():
    def run() -> None:
        with Interrupts().caught():
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers: list[object] = []
    worker = threading.Thread(target=run)
    worker.start()
    worker.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
