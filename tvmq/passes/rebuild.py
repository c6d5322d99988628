"""Rebuild a function binding by binding: what every pass of this folder is made of.

A rule sees one binding whose operands are already rewritten, may look back through the definitions
(`Rebuild.call`), and answers with a replacement or None. One forward walk and one backward sweep of dead
bindings: linear in the size of the function; a binding that no rule touches keeps its very objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import tvm
from tvm import relax

Var = Any  # relax.Var; tvm ships no types
Expr = Any  # relax.Expr

Rule = Callable[["Rebuild", Var, Expr], Expr | None]


def rebuild(mod: tvm.IRModule, *rules: Rule) -> tvm.IRModule:
    """Return mod with every binding of every dataflow function offered to rules, the first answer taken.

    A rule gets (rebuild, the old variable, its value) and returns an expression of the same type: a call
    is bound under the old variable's name, a variable or a constant takes the old variable's place.
    Functions with control flow or side effects (not exactly one dataflow block) are left alone.
    """
    changed = {}
    for name, func in mod.functions.items():
        if _is_dataflow(func):
            new = Rebuild(func, rules).run()
            if new is not func:
                changed[name] = new
    if not changed:
        return mod
    result = mod.clone()
    for name, func in changed.items():
        result.update_func(name, func)
    return result


def bindings(func: relax.Function) -> tuple[Any, ...]:
    """Return the bindings of func, in order."""
    return tuple(b for block in func.body.blocks for b in block.bindings)


def used_vars(expr: Expr) -> Iterator[Var]:
    """Return the variables that expr (in normal form) reads, once per reading."""
    return (leaf for leaf in operands(expr) if isinstance(leaf, relax.Var))


def operands(expr: Expr) -> Iterator[Expr]:
    """Yield the variables and constants that expr (in normal form) reads, once per reading."""
    if isinstance(expr, relax.Var | tvm.ir.GenericConst):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from operands(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from operands(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from operands(arg)


def rename(func: relax.Function, names: dict[Var, str]) -> relax.Function:
    """Return func with the bound variables in names called so; the function itself where nothing changes."""
    fresh: dict[Var, Expr] = {}
    out = []
    for binding in bindings(func):
        var, value = binding.var, substitute(binding.value, fresh)
        wanted = names.get(var, var.name)
        if wanted != var.name:
            fresh[var] = var = type(var)(wanted, binding.var.ty)
        out.append(binding if var is binding.var and value is binding.value else relax.VarBinding(var, value))
    return _with_body(func, out, substitute(func.body.body, fresh)) if fresh else func


def substitute(expr: Expr, replaced: dict[Var, Expr]) -> Expr:
    """Return expr with variables replaced by expressions of the same type; expr itself if it has none."""
    if isinstance(expr, relax.Var):
        return replaced.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        fields = [substitute(f, replaced) for f in expr.fields]
        return relax.Tuple(fields) if _differ(fields, expr.fields) else expr
    if isinstance(expr, relax.TupleGetItem):
        source = substitute(expr.tuple_value, replaced)
        return expr if source is expr.tuple_value else _item(source, expr.index)
    if isinstance(expr, relax.Call):
        args = [substitute(a, replaced) for a in expr.args]
        if _differ(args, expr.args):
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args, ret_ty=expr.ty)
    return expr


class Rebuild:
    """The state of one walk: what new variables mean, and how often they are read."""

    def __init__(self, func: relax.Function, rules: tuple[Rule, ...]) -> None:
        self._func = func
        self._rules = rules
        self._builder = relax.BlockBuilder()
        self._values: dict[Var, Expr] = {}  # in order of emission: the new bindings
        self._replaced: dict[Var, Expr] = {}
        self._changed = False
        alive = live([(b.var, b.value) for b in bindings(func)], func.body.body)
        self._uses = Counter(v for _, value in alive for v in used_vars(value))
        self._uses.update(used_vars(func.body.body))
        self._live = alive

    def run(self) -> relax.Function:
        """Walk the function and return the new one; the function itself if no rule answered."""
        for var, value in self._live:
            self._visit(var, substitute(value, self._replaced))
        if not self._changed and len(self._live) == len(bindings(self._func)):
            return self._func
        body = self._keep_outputs(substitute(self._func.body.body, self._replaced))
        return _with_body(
            self._func, [relax.VarBinding(v, e) for v, e in live(list(self._values.items()), body)], body
        )

    def value(self, expr: Expr) -> Expr:
        """Return what a variable is bound to; any other expression, and a parameter, as it is."""
        return self._values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def call(self, expr: Expr, *ops: str) -> Any:
        """Return the call that expr is bound to if its operator is one of ops ("add", "nn.gelu")."""
        value = self.value(expr)
        return value if op_name(value) in ops else None

    def uses(self, expr: Expr) -> int:
        """Return how often the function reads a variable."""
        return self._uses[expr]

    def is_output(self, var: Var) -> bool:
        """Say whether the function returns var."""
        return not isinstance(var, relax.DataflowVar)

    def emit(self, expr: Expr, name: str = "lv", uses: int = 1) -> Var:
        """Bind expr to a new variable that the caller is about to use."""
        normal = self._builder.normalize(expr)
        var = relax.DataflowVar(name, normal.ty)
        self._bind(var, normal, uses)
        return var

    def _visit(self, var: Var, value: Expr) -> None:
        for rule in self._rules:
            answer = rule(self, var, value)
            if answer is not None:
                self._changed = True
                self._replace(var, answer)
                return
        self._bind(var, value, self._uses[var])

    def _replace(self, var: Var, answer: Expr) -> None:
        uses = self._uses[var]
        if isinstance(answer, relax.Var):
            self._replaced[var] = answer
            self._uses[answer] += uses - 1
        elif isinstance(answer, tvm.ir.GenericConst) and isinstance(var, relax.DataflowVar):
            self._replaced[var] = answer
        else:
            normal = self._builder.normalize(answer)
            self._replaced[var] = new = type(var)(var.name, normal.ty)
            self._bind(new, normal, uses)

    def _bind(self, var: Var, value: Expr, uses: int) -> None:
        self._values[var] = value
        self._uses[var] = uses

    def _keep_outputs(self, body: Expr) -> Expr:
        """Turn dataflow variables that have become outputs into plain ones, as Relax wants them."""
        outputs = {v: relax.Var(v.name, v.ty) for v in used_vars(body) if isinstance(v, relax.DataflowVar)}
        if outputs:
            self._values = {outputs.get(v, v): substitute(e, outputs) for v, e in self._values.items()}
        return substitute(body, outputs)


def sequence(blocks: list[Any], result: Expr) -> Any:
    """Return a function body of normalized bindings, typed: SeqExpr alone leaves its own type open."""
    seq = relax.SeqExpr(blocks, result)
    relax.expr._update_type(seq, result.ty)
    return seq


def op_name(expr: Expr) -> str:
    """Return the operator of a call without "relax." ("add", "nn.conv2d"), "" for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name).removeprefix("relax.")
    return ""


def shape_of(expr: Expr) -> tuple[int, ...] | None:
    """Return a tensor's shape, None where it is unknown, symbolic, or expr is no tensor."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not isinstance(shape, relax.ShapeExpr):
        return None
    if any(not isinstance(d, tvm.tirx.IntImm) for d in shape.values):
        return None
    return tuple(int(d) for d in shape.values)


def dtype_of(expr: Expr) -> str:
    """Return a tensor's dtype ("float32"); "" where expr is no tensor."""
    return str(getattr(expr.ty, "dtype", "") or "")


def _is_dataflow(func: Any) -> bool:
    if not isinstance(func, relax.Function) or not isinstance(func.body, relax.SeqExpr):
        return False
    blocks = func.body.blocks
    return (
        len(blocks) == 1
        and isinstance(blocks[0], relax.DataflowBlock)
        and all(isinstance(b, relax.VarBinding) for b in blocks[0].bindings)
    )


def _with_body(func: relax.Function, out: list[Any], body: Expr) -> relax.Function:
    seq = sequence([relax.DataflowBlock(out)] if out else [], body)
    return relax.Function(func.params, seq, func.ret_ty, func.is_pure, func.attrs)


def live(pairs: list[tuple[Var, Expr]], body: Expr) -> list[tuple[Var, Expr]]:
    """Return the bindings (variable, value) that body depends on, in order."""
    needed = set(used_vars(body))
    kept = []
    for var, value in reversed(pairs):
        if var in needed:
            kept.append((var, value))
            needed.update(used_vars(value))
    return kept[::-1]


def _item(source: Expr, index: int) -> Expr:
    if isinstance(source, relax.Tuple):
        return source.fields[index]
    return relax.TupleGetItem(source, index)


def _differ(new: list[Expr], old: Any) -> bool:
    return any(not a.same_as(b) for a, b in zip(new, old, strict=True))
