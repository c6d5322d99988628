import pytest
import torch

from tests.torch_threads import torch_threads
from tvmq.one_thread import one_thread


def test_torch_gets_its_threads_back():
    @one_thread()
    def inner() -> int:
        return torch.get_num_threads()

    with torch_threads(2):
        assert inner() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread():
            _ = 1 / 0
        assert torch.get_num_threads() == 2
