"""Make what a rival runs from model.onnx: python quantize.py ENGINE SOURCE OUTPUT

ENGINE is onnxruntime-int8, openvino or openvino-int8. Runs in the rivals' environment. Each is quantized as
its own documentation says, on the samples of calibration.npz; few samples do, since neither speed nor size
depends on the ranges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]


def samples(folder: Path) -> Iterator[Arrays]:
    """Yield the calibration samples in batches as large as a run takes."""
    with np.load(folder / "input.npz") as file:
        batch = len(file[file.files[0]])
    with np.load(folder / "calibration.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for i in range(0, len(next(iter(arrays.values()))), batch):
        yield {name: array[i : i + batch] for name, array in arrays.items()}


def onnxruntime_int8(folder: Path, output: Path) -> None:
    """Static QDQ: weights per channel, u8 x s8 (what VNNI multiplies), every operator that has an int8 form.

    Fewer operators, or both sides signed, were measured to be slower.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = samples(folder)

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    prepared = output.with_name("prepared.onnx")
    # Shapes by ONNX's own inference: the symbolic one gives up on Swin, and the others do not need it.
    quant_pre_process(str(folder / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(output),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()


def openvino_float(folder: Path, output: Path) -> None:
    """OpenVINO's own format, weights kept in 32 bits."""
    import openvino

    openvino.save_model(imported(folder), output, compress_to_fp16=False)


def openvino_int8(folder: Path, output: Path) -> None:
    """NNCF's post-training quantization with its default preset for the kind of model."""
    import nncf
    import openvino

    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    quantized = nncf.quantize(
        imported(folder),
        nncf.Dataset(list(samples(folder))),
        model_type=nncf.ModelType.TRANSFORMER if about["transformer"] else None,
    )
    openvino.save_model(quantized, output)


def imported(folder: Path) -> Any:
    """Return the exported model as OpenVINO reads it."""
    import openvino

    return openvino.Core().read_model(folder / "model.onnx")


QUANTIZERS = {
    "onnxruntime-int8": onnxruntime_int8,
    "openvino": openvino_float,
    "openvino-int8": openvino_int8,
}


def main(arguments: Sequence[str]) -> None:
    """Make one of them."""
    if len(arguments) != 3 or arguments[0] not in QUANTIZERS:
        raise SystemExit(__doc__)
    QUANTIZERS[arguments[0]](Path(arguments[1]), Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
