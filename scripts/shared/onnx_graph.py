"""Exported ONNX graphs without what depends on constants and shapes only."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]


def fold(model: Any, inputs: Arrays) -> Any:
    """Return the model with everything computed that depends on constants and shapes only.

    Exporters leave long chains of such operators, and not every importer gets through them.
    """
    import onnx

    constant = {"", *(tensor.name for tensor in model.graph.initializer)}
    kept, folded = [], []
    for node in model.graph.node:
        if node.op_type == "Shape" or set(node.input) <= constant:
            constant.update(node.output)
            folded.append(node)
        else:
            kept.append(node)
    read = {name for node in kept for name in node.input}
    values = computed(model, {name for node in folded for name in node.output} & read, inputs)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in values.items())
    unread = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unread:
        model.graph.initializer.remove(tensor)
    del model.graph.value_info[:]
    return model


def computed(model: Any, wanted: set[str], inputs: Arrays) -> Arrays:
    """Return these values of a model in one run."""
    import onnx
    import onnxruntime

    if not wanted:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(wanted))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(sorted(wanted), session.run(None, inputs), strict=True))
