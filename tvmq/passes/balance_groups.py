"""Find channels that can be balanced exactly: what makes them, and which sites take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tvm

from tvmq.passes.constants import array_of
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.linear_graph import LinearGraph, is_constant
from tvmq.passes.pooled_rows import pooled_rows
from tvmq.passes.rebuild import Expr, Var, shape_of
from tvmq.passes.score_terms import score_terms

Float32 = npt.NDArray[np.float32]

ATTENTIONS = ("nn.attention", "nn.attention_bias")


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A site that takes the channels of a group."""

    site: str
    weight: Float32 = field(repr=False)  # [C, taps, N]; depthwise: [C, taps, 1]
    mixes: bool = True  # its outputs are sums over channels; those of a depthwise convolution are not


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can be balanced together."""

    site: str  # what makes them: the layer_norm, the matmul that makes v, the convolution
    value: str  # what the consumers take: [..., C], or [B, C, H, W] after a convolution
    bias: str | None  # the addition of the maker's bias; None for a layer_norm
    consumers: tuple[Consumer, ...]
    shiftable: bool  # a number added to a channel reaches all consumers, and can be taken away there
    pooled: bool = False  # a sample has fewer rows here than where its channels are made

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return len(self.consumers[0].weight)


def find_groups(mod: tvm.IRModule) -> tuple[Group, ...]:
    """Return the groups of main, in graph order within each kind."""
    graph = LinearGraph(mod["main"])
    found = [_after_layer_norm(graph, var) for var in graph.values if graph.op(var) == "nn.layer_norm"]
    found += [_through_attention(graph, var) for var in graph.values if graph.op(var) in ATTENTIONS]
    found += [_through_relu(graph, var) for var in graph.values if graph.op(var) == "nn.relu"]
    return tuple(group for group in found if group is not None)


def _after_layer_norm(graph: LinearGraph, var: Var) -> Group | None:
    """Return the group of a layer_norm over the last axis whose every reader is a linear.

    Between may be what takes some of its rows, or means or sums of them, as before the head of a classifier.
    """
    call = graph.values[var]
    if not all(is_constant(arg) and len(arg.ty.shape) == 1 for arg in call.args[1:3]):
        return None
    value, shiftable = pooled_rows(graph, var)
    linears = graph.linears(value)
    if linears is None:
        return None
    pooled = _rows(value) < _rows(var)
    return Group(var.name, value.name, None, _linears(graph, linears), shiftable, pooled)


def _through_attention(graph: LinearGraph, var: Var) -> Group | None:
    """Return the group of an attention between the linear that makes v and the linears that read it.

    Each row of probabilities sums to 1, so that what is added to a channel of v is added to its mean. Not so
    where a mask may hide all keys of a row, which integers make zero.
    """
    call = graph.values[var]
    merged = graph.only_reader(var)
    if merged is None or graph.op(merged) != "reshape":
        return None
    if not _splits_heads(call, graph.values[merged]):
        return None
    linears = graph.linears(merged)
    source = graph.linear_before(call.args[2])
    if linears is None or source is None:
        return None
    matmul, bias = source
    bias_name = None if bias is None else bias.name
    shiftable = graph.op(var) == "nn.attention" or _sees_all(graph, call.args[3])
    return Group(matmul.name, merged.name, bias_name, _linears(graph, linears), shiftable)


def _through_relu(graph: LinearGraph, var: Var) -> Group | None:
    """Return the group of a relu between a convolution and those that read it, a max_pool between or not.

    relu(x / m) = relu(x) / m for m > 0. A relu6 has no group: it would need another bound for each channel.
    """
    made, bias = graph.values[var].args[0], None
    if graph.op(made) == "add" and array_of(graph.values[made].args[1]) is not None:
        made, bias = graph.values[made].args[0], made
    convolution = _convolution(graph, made)
    alone = all(graph.only_reader(each) is not None for each in (made, bias) if each is not None)
    if convolution is None or not alone or not _is_channel_bias(graph, bias):
        return None
    value, reader = var, graph.only_reader(var)
    if reader is not None and graph.op(reader) == "nn.max_pool2d":
        value = reader
    readers = graph.readers.get(value, [])
    consumers = [_convolution(graph, each) for each in readers]
    if value in graph.outputs or not consumers or None in consumers:
        return None
    found = tuple(each for each in consumers if each is not None)
    return Group(made.name, value.name, None if bias is None else bias.name, found, False)


def _convolution(graph: LinearGraph, var: Var) -> Consumer | None:
    """Return a depthwise convolution, or one of a single group, as what takes channels; None for others."""
    if graph.op(var) != "nn.conv2d":
        return None
    call = graph.values[var]
    weight, data = array_of(call.args[1]), shape_of(call.args[0])
    if weight is None or data is None or not isinstance(call.args[0], tvm.relax.Var):
        return None
    geometry = ConvGeometry.of(data, weight.shape, call.attrs)
    if geometry.depthwise:
        return Consumer(var.name, weight.reshape(len(weight), -1, 1), mixes=False)
    if geometry.groups != 1:
        return None
    return Consumer(var.name, weight.transpose(1, 2, 3, 0).reshape(weight.shape[1], -1, len(weight)))


def _is_channel_bias(graph: LinearGraph, bias: Var | None) -> bool:
    """Tell whether bias adds one number per channel, axis 1; so does none at all."""
    if bias is None:
        return True
    channels = (shape_of(bias) or (0, 0))[1]
    return shape_of(graph.values[bias].args[1]) in ((1, channels, 1, 1), (channels, 1, 1))


def _rows(var: Var) -> int:
    return math.prod((shape_of(var) or ())[:-1])


def _linears(graph: LinearGraph, linears: list[Var]) -> tuple[Consumer, ...]:
    weights = [graph.values[var].args[1].value.numpy() for var in linears]
    return tuple(Consumer(var.name, w[:, None, :]) for var, w in zip(linears, weights, strict=True))


def _sees_all(graph: LinearGraph, bias: Expr) -> bool:
    """Tell whether what is added to the scores is a constant: it hides no row from all keys."""
    terms = score_terms(lambda expr: graph.values.get(expr, expr), bias)
    return terms is not None and terms.seen is None


def _splits_heads(attention: Expr, merged: Expr) -> bool:
    """Tell whether merged joins [B, T, H, D] to [..., H * D] and v has as many heads as the result."""
    out, v, joined = shape_of(attention), shape_of(attention.args[2]), shape_of(merged)
    return (
        out is not None and v is not None and joined is not None
        and out[2:] == v[2:] and joined[-1] == out[2] * out[3]
    )  # fmt: skip
