"""What belongs to a site's weight: the matrix it is, the bias after it, the storage of what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.formats import QuantParams
from tvmq.plan.nodes import Node, Nodes

OUTPUT_AXIS = {"linear": 1, "conv2d": 0, "depthwise": 0, "conv2d_transpose": 1}


def input_params(
    nodes: Nodes, node: Node, values: Mapping[str, QuantParams], copies: Mapping[str, QuantParams]
) -> QuantParams:
    """Return the uint8 storage that a site reads, views looked through."""
    name = node.inputs[0]
    while name not in values:
        name = nodes.by_name[name].inputs[0]
    return copies.get(name, values[name])


def matrix_of(node: Node) -> npt.NDArray[np.float64]:
    """Return the weight as [K, N]."""
    weight = node.call.args[1].value.numpy().astype(np.float64)
    axis = OUTPUT_AXIS[node.kind]
    matrix: npt.NDArray[np.float64] = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
    return matrix


Numbers = TypeVar("Numbers", np.int8, np.float32)


def shaped(node: Node, values: npt.NDArray[Numbers]) -> npt.NDArray[Numbers]:
    """Return [K, N] in the shape of the weight, the inverse of matrix_of."""
    shape = [int(d) for d in node.call.args[1].ty.shape]
    axis = OUTPUT_AXIS[node.kind]
    moved = [d for i, d in enumerate(shape) if i != axis] + [shape[axis]]
    return np.ascontiguousarray(np.moveaxis(values.reshape(moved), -1, axis))


def bias_of(nodes: Nodes, node: Node) -> Node | None:
    """Return the addition of a site's bias, if it has one."""
    user = nodes.sole_consumer(node.name)
    return user if user is not None and user.kind == "bias" else None


def constant_of(addition: Node) -> npt.NDArray[np.float32]:
    """Return the constant that an addition adds."""
    constant = next(arg for arg in addition.call.args if isinstance(arg, tvm.ir.GenericConst))
    array: npt.NDArray[np.float32] = constant.value.numpy()
    return array
