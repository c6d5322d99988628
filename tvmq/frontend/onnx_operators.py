"""ONNX operators that TVM's importer writes as loops, where Relax has an operator that passes understand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class PadOperator(onnx_frontend.Pad):  # type: ignore[misc]
    """Pad with constants as nn.pad; with other modes, or negative widths, as TVM has it."""

    @classmethod
    def _lower_pad(cls, builder: Any, inputs: Any, attr: Any, params: Any, allowed_modes: Any) -> Any:
        mode = attr.get("mode", b"constant").decode("utf-8")
        before, after, value = cls._parse_pads_and_axes(inputs, params)
        widths = [int(width) for pair in zip(before, after, strict=True) for width in pair]
        if mode != "constant" or min(widths, default=0) < 0:
            return super()._lower_pad(builder, inputs, attr, params, allowed_modes)
        return builder.normalize(relax.op.nn.pad(inputs[0], widths, "constant", float(value)))


OPERATORS = {"Pad": PadOperator}


@contextlib.contextmanager
def better_operators() -> Iterator[None]:
    """Let TVM's ONNX importer use OPERATORS."""
    original = onnx_frontend._get_convert_map
    onnx_frontend._get_convert_map = lambda: {**original(), **OPERATORS}
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original
