"""Hypothesis strategies, and the small canonical module that several tests run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tvm import relax
from tvm.relax import op

# float32 values of any size that activations take, with zeros, denormals and repeats.
floats = st.floats(-(2.0**40), 2.0**40, width=32)
float_arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=floats)
nonempty_batches = st.lists(float_arrays, min_size=1, max_size=5)
exponents = st.integers(-6, 6)
seeds = st.integers(0, 2**16)


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """Draw float32 [n]: smooth bulk, some outliers, any scale, one- or two-sided."""
    rng = np.random.default_rng(draw(seeds))
    values = rng.standard_normal(draw(st.integers(100, 2000)))
    outliers = rng.integers(0, len(values), draw(st.integers(0, 5)))
    values[outliers] *= draw(st.floats(1, 200))
    if draw(st.booleans()):
        values = np.maximum(values, draw(st.sampled_from([0.0, -0.17])))
    return (values * 2.0 ** draw(st.integers(-12, 12)) + draw(st.sampled_from([0.0, 0.5]))).astype(np.float32)


class ModuleBuilder:
    """Bind calls under exact names (a BlockBuilder would replace the dots)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.builder = relax.BlockBuilder()
        self.bindings: list[relax.VarBinding] = []

    def bind(self, name: str, expr: relax.Expr, kind: type = relax.DataflowVar) -> relax.Var:
        normal = self.builder.normalize(expr)
        var = kind(name, normal.ty)
        self.bindings.append(relax.VarBinding(var, normal))
        return var

    def constant(self, *shape: int, spread: float = 0.0) -> relax.Expr:
        """Return a normal float32 constant whose last axis has scales 2**(spread * normal)."""
        scales = 2.0 ** (spread * self.rng.standard_normal(shape[-1]))
        return relax.const((self.rng.standard_normal(shape) * scales).astype(np.float32))

    def linear(self, site: str, x: relax.Var, outputs: int) -> relax.Var:
        y = self.bind(site, op.matmul(x, self.constant(int(x.ty.shape[-1]), outputs)))
        return self.bind(f"{site}.bias", op.add(y, self.constant(outputs)))

    def layer_norm(self, site: str, x: relax.Var, spread: float) -> relax.Var:
        c = int(x.ty.shape[-1])
        gamma, beta = self.constant(c, spread=spread), self.constant(c, spread=spread)
        return self.bind(site, op.nn.layer_norm(x, gamma, beta, axes=[-1], epsilon=1e-5))

    def module(self, params: list[relax.Var], result: relax.Expr) -> tvm.IRModule:
        out = self.bind("out", result, relax.Var)
        body = relax.SeqExpr([relax.DataflowBlock(self.bindings)], out)
        func = relax.Function(params, self.builder.normalize(body), out.ty, is_pure=True)
        return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def transformer_block(
    seed: int = 0, *, tokens: int = 5, heads: int = 2, head_dim: int = 4, spread: float = 2.0
) -> tvm.IRModule:
    """Return a canonical transformer block of [1, tokens, heads * head_dim], channels spread by 2**spread."""
    c, make = heads * head_dim, ModuleBuilder(np.random.default_rng(seed))
    x = relax.Var("x", relax.TensorType((1, tokens, c), "float32"))
    normed = make.layer_norm("norm1", x, spread)
    split = [
        make.bind(
            f"reshape.{name}",
            op.reshape(make.linear(f"attn.{name}", normed, c), (1, tokens, heads, head_dim)),
        )
        for name in "qkv"
    ]
    mixed = make.bind("attn", op.nn.attention(*split, scale=head_dim**-0.5))
    merged = make.bind("merge", op.reshape(mixed, (1, tokens, c)))
    trunk = make.bind("add.0", op.add(make.linear("attn.proj", merged, c), x))
    hidden = make.linear("mlp.fc1", make.layer_norm("norm2", trunk, spread), 2 * c)
    mlp = make.linear("mlp.fc2", make.bind("gelu.0", op.nn.gelu(hidden)), c)
    return make.module([x], op.add(mlp, trunk))


BLOCK_INPUTS: Mapping[str, str] = {
    "attn.q": "norm1",
    "attn.k": "norm1",
    "attn.v": "norm1",
    "attn.proj": "merge",
    "mlp.fc1": "norm2",
    "mlp.fc2": "gelu.0",
}
