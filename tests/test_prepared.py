import pytest
import torch

from tests import tiny_transformer
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.prepared import FITTED, HELD, Settings, few, prepare, split, uniform_numbers

SETTINGS = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)


def samples(count: int, size: int = 1) -> list[tuple[torch.Tensor, ...]]:
    numbered = torch.arange(count * size, dtype=torch.float32).reshape(count, size, 1)
    return [(each, 10 * each) for each in numbered]


def numbers(batches: list[tuple[torch.Tensor, ...]]) -> list[set[int]]:
    assert all(torch.equal(10 * x, y) for x, y in batches)
    return [set(x.flatten().int().tolist()) for x, _ in batches]


def test_every_fourth_batch_is_held_out():
    fitted, held, judged_on = split(samples(9))
    assert (numbers(fitted), numbers(held)) == ([{0}, {1}, {2}, {4}, {5}, {6}, {8}], [{3}, {7}])
    assert judged_on == HELD


@pytest.mark.parametrize(("batches", "size"), [(1, 16), (2, 6), (3, 2), (1, 5)])
def test_of_few_batches_samples_are_held_out(batches: int, size: int):
    fitted, held, judged_on = split(samples(batches, size))
    assert judged_on == HELD
    assert all(x.shape == (size, 1) for x, _ in (*fitted, *held))
    ours, theirs = (set().union(*numbers(each)) for each in (fitted, held))
    assert not ours & theirs
    assert ours | theirs == set(range(batches * size))
    assert len(theirs) == batches * size // 4


def test_where_nothing_can_be_held_out_that_is_said():
    batches = samples(3)
    assert split(batches) == (batches, batches, FITTED)
    unlike = [(torch.zeros(8, 2), torch.zeros(5, 2))]
    assert split(unlike)[2] == FITTED


def test_a_model_is_prepared_once_for_all_precisions():
    mod = tiny_transformer.canonical()
    batches = list(as_batches(tiny_transformer.inputs(8), input_specs(mod)))
    found = prepare(mod, batches, SETTINGS, keep=True)
    assert (len(found.fitted), len(found.held), found.judged_on) == (6, 2, HELD)
    assert found.float_inputs == list(found.nodes.parameters)
    assert {weight.bits for weight in uniform_numbers(found, "w6a8").weights.values()} == {6, 8}
    assert [len(few(batches, count)) for count in (1, 3, 100)] == [1, 3, 8]
