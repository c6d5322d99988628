import numpy as np
import pytest
from tvm import relax

from tvmq.errors import UsageError
from tvmq.passes.canonicalize import canonicalize
from tvmq.sites import Site, match_sites, sites

IDS = ("blocks.0.attn.qkv.q", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "head")


def test_sites_in_graph_order_with_their_work():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 8, 8), "float32"))
    w = relax.const(np.ones((4, 3, 2, 2), np.float32))
    bias = relax.const(np.ones((1, 4, 1, 1), np.float32))
    head = relax.const(np.ones((4, 5), np.float32))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(builder.emit(relax.op.nn.conv2d(x, w, strides=[2, 2])), bias))
            y = builder.emit(relax.op.permute_dims(builder.emit(relax.op.nn.relu(y)), [0, 2, 3, 1]))
            out = builder.emit_output(relax.op.matmul(y, head))
        builder.emit_func_output(out)
    assert sites(canonicalize(builder.get())) == (
        Site("conv2d.0", "conv2d", 4 * 4 * 4 * 3 * 2 * 2),
        Site("relu.0", "relu", 0),
        Site("matmul.0", "linear", 4 * 4 * 4 * 5),
    )


def test_patterns_are_globs_over_whole_ids():
    assert match_sites(["head", "blocks.*.fc1"], IDS) == {"head", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}


def test_a_pattern_that_names_nothing_lists_near_matches():
    with pytest.raises(UsageError, match=r"'block.0.mlp.fc1': names no site .*: blocks.0.mlp.fc1"):
        match_sites(["block.0.mlp.fc1"], IDS)
