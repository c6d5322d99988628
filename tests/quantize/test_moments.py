"""Rows times matrices are what the sites compute; moments are those of these rows."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.plan.nodes import Node, index
from tvmq.quantize.moments import _stride, as_matrices, from_matrices, moments_of
from tvmq.reference import Interpreter

CASES = {
    "linear": ((2, 5, 6), (6, 3), {}),
    "pointwise": ((1, 4, 5, 3), (8, 4, 1, 1), {}),
    "strided": ((2, 4, 7, 6), (3, 4, 3, 2), {"strides": (2, 1), "padding": (1, 0, 2, 1)}),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), {"padding": (1, 1, 1, 1), "groups": 2}),
    "depthwise": ((1, 5, 6, 6), (5, 1, 3, 3), {"padding": (1, 1, 1, 1), "groups": 5, "dilation": (2, 1)}),
}


def site(kind: str) -> tuple[Node, tvm.IRModule, torch.Tensor, torch.Tensor]:
    """Return a module's only node, the module, an input and the weight."""
    shape, weight_shape, attrs = CASES[kind]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(weight_shape).astype(np.float32)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            call = (
                op.matmul(x, relax.const(weight))
                if kind == "linear"
                else op.nn.conv2d(x, relax.const(weight), **attrs)
            )
            y = builder.emit(call, "site")
            y = builder.emit_output(y, "out")
        builder.emit_func_output(y)
    mod = builder.finalize()
    data = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return index(mod).by_name["site"], mod, data, torch.from_numpy(weight)


@pytest.mark.parametrize("kind", sorted(CASES))
def test_moments_give_the_energy_of_the_outputs(kind):
    node, mod, x, weight = site(kind)
    matrices = as_matrices(node, weight)
    torch.testing.assert_close(from_matrices(node, matrices), weight)
    out = Interpreter(mod).apply(node.call, [x, weight])
    out = out.reshape(-1, out.shape[-1]) if kind == "linear" else out.movedim(1, -1).reshape(-1, out.shape[1])
    moments = moments_of(node, torch.stack([x, -x]), torch.stack([2 * x, 2 * x]))
    energy = (matrices * (moments.gram @ matrices)).sum(1).ravel()
    torch.testing.assert_close(energy, 4 * out.square().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        (moments.mean_q[:, None] @ matrices).ravel(), 2 * out.mean(0), rtol=1e-4, atol=1e-5
    )
    assert moments.cross.abs().max() < 1e-5  # x and -x cancel
    assert moments.mean_x.abs().max() < 1e-6
    assert moments.rows == pytest.approx(2 * len(out))


def test_a_channel_far_from_zero_keeps_its_variance():
    node, _, x, _ = site("linear")
    far = x.clone()
    far[..., 0] = x[..., 0] * 0.01 + 3000
    found = moments_of(node, far[None], far[None], centred=True)
    exact = torch.cov(far.reshape(-1, 6).double().T, correction=0)
    torch.testing.assert_close(found.gram[0].double(), exact, rtol=1e-3, atol=1e-6)
    assert found.mean_q.abs().max() == 0


def test_images_are_unfolded_a_few_at_a_time(monkeypatch):
    node, _, x, _ = site("strided")
    at_once = moments_of(node, x[None], x[None], torch.arange(48.0))
    monkeypatch.setattr("tvmq.quantize.moments.UNFOLDED", 1)
    torch.testing.assert_close(moments_of(node, x[None], x[None], torch.arange(48.0)).gram, at_once.gram)


def test_thinned_rows_are_of_all_tokens(monkeypatch):
    node, _, _, _ = site("linear")
    monkeypatch.setattr("tvmq.quantize.moments.MOST_ROWS", 60)
    tokens = (
        torch.eye(6)[torch.arange(10) % 6].reshape(2, 5, 6).expand(64, 2, 5, 6)
    )  # which token is K's index
    seen = moments_of(node, tokens, tokens).gram[0].diagonal()
    wanted = torch.tensor([2.0, 2, 2, 2, 1, 1]) / 10
    torch.testing.assert_close(seen, wanted, rtol=0.25, atol=0.03)


def test_rows_are_thinned_so_that_no_column_is_left_out(monkeypatch):
    monkeypatch.setattr("tvmq.quantize.moments.MOST_ROWS", 10)
    assert [_stride(100, width) for width in (7, 10, 11)] == [10, 11, 10]
    assert [_stride(rows, 5) for rows in (10, 1)] == [1, 1]


def test_rows_that_a_sample_hides_do_not_count():
    node, _, x, _ = site("linear")  # 2 x 5 rows of 6
    both, counts = torch.stack([x, x + 1]), torch.zeros(2, 10)
    counts[0, :4] = counts[1, 7] = 1
    found = moments_of(node, both, both, counts)
    rows = torch.cat([both[0].reshape(10, 6)[:4], both[1].reshape(10, 6)[7:8]])
    torch.testing.assert_close(found.gram[0], rows.T @ rows / 5)
    torch.testing.assert_close(found.mean_q[0], rows.mean(0))
    assert found.rows == pytest.approx(5)
