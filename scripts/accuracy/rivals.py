"""Quantize with a rival, in the rivals' environment.

Every function takes a bed's model, calibration samples (each a batch of one) and the options of its cells,
and writes a file that child.py runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]
STRIDE = 16  # samples whose activations ONNX Runtime holds at a time


def nncf_quantize(model: Path, samples: Sequence[Arrays], options: Mapping[str, Any], output: Path) -> None:
    """transformer: NNCF's settings for these; smooth: SmoothQuant; fast: bias correction; mixed: preset."""
    import nncf
    import openvino

    advanced = nncf.AdvancedQuantizationParameters()
    if not options.get("smooth", True):
        advanced.smooth_quant_alphas.matmul = advanced.smooth_quant_alphas.convolution = -1
    quantized = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset(list(samples)),
        preset=nncf.QuantizationPreset.MIXED if options.get("mixed") else None,
        model_type=nncf.ModelType.TRANSFORMER if options["transformer"] else None,
        subset_size=len(samples),
        fast_bias_correction=options.get("fast", True),
        advanced_parameters=advanced,
    )
    openvino.save_model(quantized, output, compress_to_fp16=False)


def nncf_weights(model: Path, samples: Sequence[Arrays], options: Mapping[str, Any], output: Path) -> None:
    """mode, group: as NNCF names them; scale_estimation: choose scales by the samples."""
    import nncf
    import openvino

    mode = nncf.CompressWeightsMode(options["mode"])
    by_samples = options.get("scale_estimation", False)
    compressed = nncf.compress_weights(
        openvino.Core().read_model(model),
        mode=mode,
        ratio=1.0,
        group_size=options["group"],
        all_layers=True,
        dataset=nncf.Dataset(list(samples)) if by_samples else None,
        scale_estimation=True if by_samples else None,
        subset_size=len(samples),
    )
    openvino.save_model(compressed, output, compress_to_fp16=False)


def ort_static(model: Path, samples: Sequence[Arrays], options: Mapping[str, Any], output: Path) -> None:
    """calibrate: minmax, percentile or entropy; operators: all, or products (MatMul, Gemm, Conv)."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(samples))

        def __len__(self) -> int:
            return len(samples)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(samples[start_index:end_index])

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
        "entropy": quantization.CalibrationMethod.Entropy,
    }
    prepared = output.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(output),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"] if options["operators"] == "products" else None,
        per_channel=True,
        reduce_range=False,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=methods[options["calibrate"]],
        extra_options={"CalibStridedMinMax": STRIDE},
    )


def ort_weights(model: Path, _samples: Sequence[Arrays], options: Mapping[str, Any], output: Path) -> None:
    """group: weights that share a scale; symmetric: without zero point."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(model), bits=4, block_size=options["group"], is_symmetric=options["symmetric"]
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(output))


Quantizer = Callable[[Path, Sequence[Arrays], Mapping[str, Any], Path], None]
QUANTIZERS: dict[tuple[str, str], Quantizer] = {
    ("openvino", "quantize"): nncf_quantize,
    ("openvino", "weights"): nncf_weights,
    ("onnxruntime", "static"): ort_static,
    ("onnxruntime", "weights"): ort_weights,
}
