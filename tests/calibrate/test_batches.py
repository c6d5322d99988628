import re

import numpy as np
import pytest
import torch

from tvmq.calibrate.batches import as_batches
from tvmq.errors import CalibrationError, TvmqWarning
from tvmq.spec import TensorSpec

IMAGE = (TensorSpec("image", (1, 3, 4, 4), "float32"),)
PAIR = (TensorSpec("ids", (2, 6), "int64"), TensorSpec("mask", (2, 6), "float32"))
UNEQUAL = (TensorSpec("ids", (2, 6), "int64"), TensorSpec("positions", (1, 6), "int64"))


def images(samples, dtype="float32"):
    return np.random.default_rng(0).standard_normal((samples, 3, 4, 4)).astype(dtype)


def pair(samples):
    rng = np.random.default_rng(0)
    return {"ids": rng.integers(0, 99, (samples, 6)), "mask": np.ones((samples, 6), "float32")}


@pytest.mark.parametrize(
    "form",
    [
        lambda data: data,
        torch.from_numpy,
        lambda data: data.astype("float64"),
        lambda data: {"image": data},
        list,
        lambda data: [(torch.from_numpy(image),) for image in data],
        lambda data: ({"image": image[None]} for image in data),
        lambda data: [data[:3], data[3:4], data[4:]],
    ],
    ids=["array", "tensor", "float64", "dict", "samples", "tuples", "generator of dicts", "uneven batches"],
)
def test_every_form_gives_the_same_batches(form):
    data = images(6)
    batches = list(as_batches(form(data), IMAGE))
    assert [tuple(batch[0].shape) for batch in batches] == [(1, 3, 4, 4)] * 6
    assert {batch[0].dtype for batch in batches} == {torch.float32}
    np.testing.assert_array_equal(torch.cat([batch[0] for batch in batches]).numpy(), data)


def test_several_inputs_are_ordered_by_name_and_joined_to_the_batch_size():
    data = pair(4)
    samples = [{"mask": data["mask"][i], "ids": data["ids"][i].astype("int32")} for i in range(4)]
    for given in (data, samples, [(data["ids"][:3], data["mask"][:3]), (data["ids"][3:], data["mask"][3:])]):
        batches = list(as_batches(given, PAIR))
        assert len(batches) == 2
        np.testing.assert_array_equal(torch.cat([ids for ids, _ in batches]).numpy(), data["ids"])
        assert batches[0][0].dtype == torch.int64


def test_inputs_without_a_common_batch_axis_come_as_given_and_in_the_exact_shape():
    positions = np.arange(6)[None]
    items = [(np.full((2, 6), i), positions) for i in range(3)]
    assert len(list(as_batches(items, UNEQUAL))) == 3
    with pytest.raises(CalibrationError, match=r"input 'ids': has shape \[4, 6\], \[2, 6\] is wanted"):
        list(as_batches([(np.ones((4, 6), "int64"), positions)], UNEQUAL))


def broken(value):
    data = images(4)
    data[2, 0, 0, 0] = value
    return data


@pytest.mark.parametrize(
    ("data", "specs", "message"),
    [
        (None, IMAGE, "no data is given, 32 or more typical inputs are wanted, e.g. calibration=["),
        ([], IMAGE, "the data is empty, at least 2 are wanted and 32 or more are good"),
        (images(0), IMAGE, "the data is empty"),
        (images(1), IMAGE, "there is one sample, at least 2 are wanted"),
        ([images(1)], IMAGE, "there is one sample"),
        ({k: v[:1] for k, v in pair(2).items()}, PAIR, "there is one sample"),
        (np.ones((8, 3, 4, 4), "float32"), IMAGE, "all 8 samples are identical"),
        (np.repeat(images(1), 5, axis=0), IMAGE, "all 5 samples are identical"),
        (broken(np.nan), IMAGE, "batch 2, input 'image': 1 of 48 values are NaN"),
        (broken(-np.inf), IMAGE, "batch 2, input 'image': 1 of 48 values are infinite"),
        (np.full((4, 3, 4, 4), 1e39), IMAGE, "batch 0, input 'image': 48 of 48 values are infinite"),
        (images(4, "uint8"), IMAGE, "has dtype uint8, float32 is wanted; prepare it exactly as"),
        (images(4)[:, :2], IMAGE, "has shape [1, 2, 4, 4], [1, 3, 4, 4] is wanted"),
        (images(4)[0], IMAGE, "input 'image' has shape [3, 4, 4], samples of shape [3, 4, 4]"),
        (images(4)[:, :, :, :, None], IMAGE, "has shape [4, 3, 4, 4, 1]"),
        ([(image, 7) for image in images(4)], IMAGE, "holds 2 arrays, the model takes 1: ['image']; leave"),
        ([{"pixels": image} for image in images(4)], IMAGE, "has inputs ['pixels'], ['image'] are wanted"),
        (pair(5), PAIR, "5 samples do not fill batches of 2; give 4 or 6, or compile"),
        ({**pair(4), "mask": np.ones((3, 6), "f4")}, PAIR, "the arrays hold 3 and 4 samples"),
        ([(np.ones((2, 6), "i8"), np.ones((3, 6), "f4"))], PAIR, "batch 0: the inputs hold 2 and 3 samples"),
        ("images/", IMAGE, "str is given, arrays or batches of arrays are wanted"),
        (["a.png", "b.png"], IMAGE, "input 'image': is str, an array or tensor of float32 is wanted"),
        ([np.array(["a", "b"])], IMAGE, "an array or tensor of float32 is wanted"),
        (7, IMAGE, "int is given"),
    ],
)  # fmt: skip
def test_unusable_data_is_refused_in_a_sentence(data, specs, message):
    with pytest.raises(CalibrationError, match=re.escape(message)):
        list(as_batches(data, specs))


@pytest.mark.parametrize("label", [(), (10,)])
def test_labels_of_a_data_loader_are_left_out_and_that_is_said_once(label):
    batches = [(images(2), torch.zeros(2, *label)), (images(2) + 1, torch.zeros(2, *label))]
    with pytest.warns(TvmqWarning, match="taken for labels") as said:
        found = list(as_batches(batches, IMAGE))
    assert len(said) == 1
    assert torch.equal(torch.cat([x for (x,) in found]), torch.cat([torch.tensor(x) for x, _ in batches]))


def test_two_arrays_of_which_both_fit_are_refused():
    with pytest.raises(CalibrationError, match="holds 2 arrays"):
        list(as_batches([(images(2), images(2))], IMAGE))


def test_integers_outside_the_models_range_are_refused():
    spec = (TensorSpec("ids", (1, 6), "int32"),)
    with pytest.raises(CalibrationError, match="outside the range of int32"):
        list(as_batches(np.full((3, 6), 2**40), spec))


def test_constant_data_is_refused_before_any_batch_is_given_out():
    iterator = as_batches(np.zeros((4, 3, 4, 4), "float32"), IMAGE)
    with pytest.raises(CalibrationError):
        next(iterator)
