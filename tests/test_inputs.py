import numpy as np
import pytest

from tvmq.errors import InputError
from tvmq.inputs import checked_inputs
from tvmq.spec import TensorSpec

SPECS = (TensorSpec("image", (1, 3, 4), "float32"), TensorSpec("ids", (2,), "int64"))
IMAGE, IDS = np.zeros((1, 3, 4), np.float32), np.array([1, 2])


def test_by_position_and_by_name():
    for args, kwargs in [((IMAGE, IDS), {}), ((IMAGE,), {"ids": IDS}), ((), {"ids": IDS, "image": IMAGE})]:
        image, ids = checked_inputs(SPECS, args, kwargs)
        assert image is IMAGE
        assert ids is IDS


def test_any_byte_order_is_taken():
    for order in "<>":
        given = (IMAGE + 1.5).astype(f"{order}f4"), IDS.astype(f"{order}i8")
        image, ids = checked_inputs(SPECS, given, {})
        assert image.dtype.isnative
        assert ids.dtype.isnative
        np.testing.assert_array_equal(image, IMAGE + 1.5)
        np.testing.assert_array_equal(ids, IDS)


def test_torch_tensors_are_taken():
    torch = pytest.importorskip("torch")
    image, _ = checked_inputs(SPECS, (torch.ones(1, 3, 4, requires_grad=True), IDS), {})
    np.testing.assert_array_equal(image, np.ones((1, 3, 4), np.float32))
    with pytest.raises(InputError, match=r"dtype bfloat16 given, float32 wanted; convert it with tensor\.to"):
        checked_inputs(SPECS, (torch.ones(1, 3, 4, dtype=torch.bfloat16), IDS), {})
    with pytest.raises(InputError, match=r"is on meta, the CPU is wanted; call \.cpu\(\)"):
        checked_inputs(SPECS, (torch.ones(1, 3, 4, device="meta"), IDS), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((IMAGE,), {}, r"inputs: 1 given, 2 wanted: image float32\[1, 3, 4\], ids int64\[2\]"),
        ((IMAGE, IDS, IDS), {}, "inputs: 3 given, 2 wanted"),
        ((IMAGE, IDS), {"mask": IDS}, "input 'mask': is unknown; the model takes image"),
        ((IMAGE,), {"image": IMAGE}, "input 'image': is given twice"),
        (
            (IMAGE.astype(np.float64), IDS),
            {},
            r"dtype float64 given, float32 wanted; convert .*astype\('float32'\)",
        ),
        ((IMAGE, IDS.astype(np.int32)), {}, "input 'ids': dtype int32 given, int64 wanted"),
        (
            (IMAGE[0], IDS),
            {},
            r"shape \[3, 4\] given, \[1, 3, 4\] wanted; add the batch dimension with x\[None\]",
        ),
        ((np.zeros((8, 3, 4), np.float32), IDS), {}, "give it 1 at a time"),
        ((np.zeros((1, 3, 5), np.float32), IDS), {}, "resize the input"),
        (([[0.0]], IDS), {}, "list given, a NumPy array or torch tensor is wanted"),
        ((IMAGE * np.nan, IDS), {}, "holds NaN or infinity"),
        ((IMAGE + np.inf, IDS), {}, "holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_wrong_and_wanted_is_said(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        checked_inputs(SPECS, args, kwargs)


@pytest.mark.filterwarnings("ignore:overflow")
def test_huge_finite_values_pass():
    huge = np.full((1, 3, 4), 3e38, np.float32)
    assert checked_inputs(SPECS, (huge, IDS), {})[0] is huge


class OnGpu:
    """What lies in the memory of a GPU, as DLPack tells it."""

    def __init__(self, shape, dtype="float32", number=0):
        self.shape, self.dtype, self.number = shape, dtype, number

    def __dlpack_device__(self):
        return 2, self.number


def test_what_lies_on_a_gpu_is_taken_for_models_there_only():
    given = OnGpu((1, 3, 4))
    image, ids = checked_inputs(SPECS, (given, IDS), {}, gpu=0)
    assert (image, ids is IDS) == (given, True)
    with pytest.raises(InputError, match="OnGpu given, a NumPy array or torch tensor is wanted"):
        checked_inputs(SPECS, (given, IDS), {})
    with pytest.raises(InputError, match=r"float16 \[1, 3, 4\] given, float32 \[1, 3, 4\] wanted"):
        checked_inputs(SPECS, (OnGpu((1, 3, 4), "float16"), IDS), {}, gpu=0)
    with pytest.raises(InputError, match="is on GPU 1, the model is on 0; move it"):
        checked_inputs(SPECS, (OnGpu((1, 3, 4), number=1), IDS), {}, gpu=0)
