"""What belongs to a site's weight: the matrix it is, the bias after it, the storage of what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.formats import QuantParams
from tvmq.plan.nodes import Node, Nodes
from tvmq.quantize.weights import largest_value

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


def packs(node: Node) -> bool:
    """Tell whether a kernel unpacks a site's weights where they have few bits, and takes gains for them."""
    return node.kind != "depthwise"


Number = TypeVar("Number", np.int8, np.float32)
INPUT_AXIS = {"linear": 0, "conv2d": 1}  # of sites whose weights have all values that so many bits hold


def limits_of(node: Node, bits: int) -> tuple[int, int]:
    """Return the least and the greatest value of a site's weights of so many bits."""
    axis = INPUT_AXIS.get(node.kind)
    # Neighbours are kept apart by pairs of inputs; the windows of an odd number of them end within a pair.
    whole = bits < 8 and axis is not None and (axis == 0 or int(node.call.args[1].ty.shape[axis]) % 2 == 0)
    largest = largest_value(bits)
    return (-largest - 1 if whole else -largest), largest


def kept_apart(node: Node, values: npt.NDArray[Number], bits: int) -> npt.NDArray[Number]:
    """Return a site's values, shaped, with no pair among its inputs (0 and 1, 2 and 3, ...) both the least.

    Of these, as the highest bits of a byte, the sum of two products with -128 would leave int16, in which
    Arm's kernels without dot products add two (arm_intrinsics.pairs_stay_in_words).
    """
    axis, least = INPUT_AXIS.get(node.kind), -(1 << bits - 1)
    if axis is None or bits == 8:
        return values
    found = values.copy()
    pairs = np.moveaxis(found, axis, 0)
    even, odd = pairs[0 : len(pairs) // 2 * 2 : 2], pairs[1::2]
    odd[(even == least) & (odd == least)] += 1
    return found


def shaped(node: Node, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
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
