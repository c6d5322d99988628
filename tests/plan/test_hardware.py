from dataclasses import replace

import pytest

from tvmq.plan.hardware import Signature, holds, offered, signatures, takes
from tvmq.spec import W8A8, Precision
from tvmq.target import Kernel, TargetProfile, load_profile

VNNI = load_profile("x86_avx512_vnni")
W4A8 = Precision(4, 8)


def with_kernels(*kernels: tuple[str, str, str]) -> TargetProfile:
    made = [
        Kernel(activation=a, weight=w, accumulator=s, macs_per_cycle=1, source="test") for a, w, s in kernels
    ]
    return replace(VNNI, kernels=tuple(made))


FLOATS = with_kernels(("float32", "float32", "float32"))
NARROW = with_kernels(("uint8", "int8", "int16"))


def test_precisions_follow_from_the_products_that_a_profile_lists():
    assert signatures(VNNI)[0] == Signature("uint8", "int8", "int32")
    assert offered("linear", 384, VNNI, [W8A8, W4A8]) == (None, W8A8, W4A8)
    assert offered("linear", 384, FLOATS, [W8A8, W4A8]) == (None,)
    assert offered("linear", 384, with_kernels(("int8", "int8", "int32")), [W8A8]) == (W8A8,)
    assert offered("layer_norm", 1, VNNI, [W8A8, W4A8]) == (None, W8A8)  # few bits are for products
    assert not takes("linear", W8A8, with_kernels(("uint8", "uint8", "int32")))


@pytest.mark.parametrize("precision", [W8A8, W4A8, Precision(2, 3)])
def test_a_narrow_accumulator_holds_exactly_as_many_products_as_there_is_room_for(precision: Precision):
    most = Signature("uint8", "int8", "int16").most_inputs(precision)
    weight = min(2 ** (precision.weight_bits - 1), 127)
    activation = 2**precision.activation_bits - 1
    assert most * weight * activation <= 2**15 - 1 < (most + 1) * weight * activation
    assert holds("linear", max(most, 1), precision, NARROW) is (most > 0)
    assert not holds("linear", most + 1, precision, NARROW)
    assert holds("linear", 10**6, precision, VNNI)  # proved with the site's own weights when it is lowered
