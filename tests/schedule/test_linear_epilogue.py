"""Every epilogue is exact on every instruction set, and ends with its last channel."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tests.schedule.isa_cases import VNNI_NAMES
from tests.schedule.linear_cases import EPILOGUES, check, compiled, random_case
from tvmq.schedule.linear_spec import LinearSpec


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("isa", VNNI_NAMES)
def test_every_epilogue_is_exact_on_every_isa_with_vnni(isa: str, epilogue: str) -> None:
    spec = LinearSpec(rows=23, inputs=36, outputs=75, **EPILOGUES[epilogue])
    check(compiled(spec, isa), spec)


@pytest.mark.parametrize("isa", VNNI_NAMES)
@pytest.mark.parametrize("outputs", [1, 3, 15, 17])
def test_a_row_does_not_spill_into_the_next(isa: str, outputs: int) -> None:
    # Rows stored first to last hide an overrun, except that of the last row.
    spec = LinearSpec(rows=1, inputs=4, outputs=outputs, out_dtype="uint8")
    arguments, expected = random_case(spec)
    room = np.full((64 + 63,), 77, "uint8")
    room = room[-room.ctypes.data % 64 :][:64]
    out = room[:outputs].reshape(1, outputs)
    kernel = compiled(spec, isa)
    kernel(*map(tvm.runtime.tensor, arguments), tvm.runtime.from_dlpack(out))
    np.testing.assert_array_equal(out, expected)
    assert (room[outputs:] == 77).all()
