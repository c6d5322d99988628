"""Index the bindings of a canonical main: what each one is to a quantizer, who feeds it, who uses it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import tvm
from tvm import relax

from tvmq.passes.constants import scalar_of
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.hidden_rows import rows_shown
from tvmq.passes.pool_windows import POOLS
from tvmq.passes.rebuild import op_name
from tvmq.passes.score_terms import score_terms
from tvmq.passes.unary_chains import Chain, chains_of
from tvmq.unary import UNARY_FUNCTIONS, unary_name

CLIPS = {"relu", "relu6"}
TABLE = "table"  # the operator's name of a chain, which has no operator of its own
VIEWS = {"reshape", "permute_dims", "expand_dims", "squeeze", "strided_slice", "take", "concat"}
MULTIPLYING = ("linear", "conv2d", "depthwise", "conv2d_transpose")
SITE_KINDS = {
    "linear", "conv2d", "depthwise", "conv2d_transpose", "attention", "layer_norm", "unary", "embedding",
    "max_pool", "mean_pool",
}  # fmt: skip

# Operators whose name alone says what they are.
SIMPLE = {
    "attention": "attention", "layer_norm": "layer_norm", **dict.fromkeys(UNARY_FUNCTIONS, "unary"),
    **dict.fromkeys((*POOLS, "mean"), "mean_pool"), "max_pool2d": "max_pool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One binding of main, or a chain of them."""

    name: str
    kind: str  # of SITE_KINDS, or: bias add view other
    op: str  # the Relax op's short name: "matmul", "gelu"
    inputs: tuple[str, ...]  # the float values it reads, constants left out
    shape: tuple[int, ...]
    call: relax.Expr = field(repr=False)
    is_float: bool = True  # the value itself
    chain: Chain | None = field(default=None, repr=False)

    @property
    def bindings(self) -> tuple[str, ...]:
        """Return the names of all bindings that the node computes."""
        return (self.name,) if self.chain is None else self.chain.names


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of main in graph order, by name, with their consumers (OUTPUT for the function's result)."""

    by_name: Mapping[str, Node]
    consumers: Mapping[str, tuple[str, ...]]
    parameters: tuple[str, ...]

    def sole_consumer(self, name: str) -> Node | None:
        """Return the only consumer of a value, None when there are several or it is an output."""
        users = self.consumers.get(name, ())
        return self.by_name[users[0]] if len(users) == 1 and users[0] != OUTPUT else None


OUTPUT = "<output>"


def index(mod: tvm.IRModule) -> Nodes:
    """Return the nodes of a canonical module's main."""
    main = mod["main"]
    chains = chains_of(main)
    every: dict[str, Node] = {}
    nodes: dict[str, Node] = {}
    consumers: dict[str, list[str]] = defaultdict(list)
    for block in main.body.blocks:
        for binding in block.bindings:
            node = _node(binding, every)
            chain = chains.by_result.get(binding.var)
            if chain is not None:
                source = str(chain.source.name)
                node = replace(node, kind="unary", op=TABLE, inputs=(source,), chain=chain)
            every[node.name] = node
            if binding.var in chains.inside:
                continue
            nodes[node.name] = node
            for name in node.inputs:
                consumers[name].append(node.name)
    for var in _variables(main.body.body):
        consumers[var.name].append(OUTPUT)
    return Nodes(
        by_name=nodes,
        consumers={name: tuple(users) for name, users in consumers.items()},
        parameters=tuple(p.name for p in main.params),
    )


def _node(binding: relax.Binding, earlier: Mapping[str, Node]) -> Node:
    call = binding.value
    named = isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.Op)
    op = unary_name(call.op.name, call.args) if named else ""
    ty = binding.var.ty
    shape = (
        tuple(int(d) for d in ty.shape) if isinstance(ty, relax.TensorType) and ty.shape is not None else ()
    )
    kind = _kind(op, call, earlier)
    # What attention adds to its scores is a constant or a choice of booleans: no value to store.
    read = call.args[:3] if kind == "attention" else [call]
    inputs = tuple(var.name for part in read for var in _variables(part) if _is_float(var))
    return Node(binding.var.name, kind, op, inputs, shape, call, _is_float(binding.var))


def _kind(op: str, call: relax.Expr, earlier: Mapping[str, Node]) -> str:
    if op == "matmul" and _is_weight(call.args[1], 2):
        return "linear"
    if op in ("conv2d", "conv2d_transpose"):
        return _kind_of_convolution(op, call) if _is_weight(call.args[1], 4) else "other"
    if op in SIMPLE:
        return SIMPLE[op]
    if op == "attention_bias":
        return "other" if score_terms(_bound(earlier), call.args[3]) is None else "attention"
    if op == "where":
        return "view" if _hides_rows(call, earlier) else "other"
    if op == "add":
        return _kind_of_add(call, earlier)
    if op == "take" and _is_weight(call.args[0], 2) and call.attrs.axis is not None:
        return "embedding" if int(call.attrs.axis) == 0 and _is_float(call.args[0]) else "other"
    return "view" if _is_view(op, call) else "other"


def _is_view(op: str, call: relax.Expr) -> bool:
    """Whether it moves values: with constant indices, and with nothing but zeros around them."""
    if op == "pad":
        return str(call.attrs.pad_mode) == "constant" and not call.attrs.pad_value
    return op in VIEWS and (op != "take" or isinstance(call.args[1], tvm.ir.GenericConst))


def _bound(earlier: Mapping[str, Node]) -> Callable[[relax.Expr], relax.Expr]:
    """Return what finds the value that a variable is bound to."""

    def value_of(expr: relax.Expr) -> relax.Expr:
        node = earlier.get(expr.name) if isinstance(expr, relax.Var) else None
        return expr if node is None else node.call

    return value_of


def _hides_rows(where: relax.Call, earlier: Mapping[str, Node]) -> bool:
    """Whether it makes zero what an attention in integers makes zero by itself: rows that see no key."""
    value_of = _bound(earlier)
    attention, seen = value_of(where.args[1]), rows_shown(value_of, where.args[0])
    if seen is None or scalar_of(where.args[2]) != 0.0 or op_name(attention) != "nn.attention_bias":
        return False
    terms = score_terms(value_of, attention.args[3])
    return terms is not None and terms.seen is not None and bool(terms.seen.same_as(seen))


def _kind_of_convolution(op: str, call: relax.Call) -> str:
    data, weight = (tuple(int(d) for d in arg.ty.shape) for arg in call.args)
    if op == "conv2d" and ConvGeometry.of(data, weight, call.attrs).depthwise:
        return "depthwise"
    return op


def _kind_of_add(call: relax.Call, earlier: Mapping[str, Node]) -> str:
    left, right = call.args
    if isinstance(right, tvm.ir.GenericConst):
        producer = earlier.get(left.name) if isinstance(left, relax.Var) else None
        is_bias = producer is not None and producer.kind in MULTIPLYING
        if is_bias and _is_channel_vector(right, producer):
            return "bias"
        return "add" if len(right.ty.shape) > 0 else "other"
    if isinstance(left, tvm.ir.GenericConst):
        return "add" if len(left.ty.shape) > 0 else "other"
    same = [int(d) for d in left.ty.shape] == [int(d) for d in right.ty.shape]
    return "add" if same else "other"


def _is_channel_vector(constant: relax.Expr, producer: Node | None) -> bool:
    if producer is None:
        return False
    axis = -1 if producer.kind == "linear" else 1
    sizes = [int(d) for d in constant.ty.shape]
    full = [1] * (len(producer.shape) - len(sizes)) + sizes
    return all(d == (producer.shape[axis] if i == axis % len(full) else 1) for i, d in enumerate(full))


def _is_weight(expr: relax.Expr, rank: int) -> bool:
    return isinstance(expr, tvm.ir.GenericConst) and len(expr.ty.shape) == rank


def _is_float(expr: relax.Expr) -> bool:
    ty = expr.ty
    return isinstance(ty, relax.TensorType) and str(ty.dtype) == "float32"


def _variables(expr: relax.Expr) -> list[relax.Var]:
    """Return the variables an expression in normal form reads, tuples looked through."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [var for f in expr.fields for var in _variables(f)]
    if isinstance(expr, relax.TupleGetItem):
        return _variables(expr.tuple_value)
    if isinstance(expr, relax.Call):
        return [var for arg in expr.args for var in _variables(arg)]
    return []
