"""The passes that bring an imported module to level canonical, in order."""

from __future__ import annotations

import tvm

from tvmq.passes.drop_softmax_guard import DropSoftmaxGuard
from tvmq.passes.fold_batch_norm import FoldBatchNorm
from tvmq.passes.fold_constants import FoldConstants
from tvmq.passes.fold_scale_and_shift import FoldScaleAndShift
from tvmq.passes.move_rows_to_attention import MoveRowsToAttention
from tvmq.passes.name_values import NameValues
from tvmq.passes.raise_activations import RaiseActivations
from tvmq.passes.raise_attention import RaiseAttention
from tvmq.passes.raise_layer_norm import RaiseLayerNorm
from tvmq.passes.remove_no_ops import RemoveNoOps
from tvmq.passes.restore_linear_rank import RestoreLinearRank
from tvmq.passes.split_fused_linear import SplitFusedLinear
from tvmq.passes.take_rows_into_norm import TakeRowsIntoNorm


def passes() -> tuple[tvm.ir.transform.Pass, ...]:
    """Return the passes, each usable on its own."""
    return (
        # Values that depend on no input: [K, N] weights, [1, C, 1, 1] biases, resized position embeddings.
        FoldConstants(),
        # Before reshapes merge: the one before a linear still says what the natural rank is.
        RestoreLinearRank(),
        RemoveNoOps(),
        FoldBatchNorm(),
        RaiseLayerNorm(),
        RaiseActivations(),
        FoldScaleAndShift(),
        DropSoftmaxGuard(),
        SplitFusedLinear(),
        RaiseAttention(),
        # What raising left behind: permutations that cancel, linears that lost their reshape.
        RemoveNoOps(),
        RestoreLinearRank(),
        MoveRowsToAttention(),
        TakeRowsIntoNorm(),
        RemoveNoOps(),
        FoldScaleAndShift(),
        NameValues(),
    )


def canonicalize(mod: tvm.IRModule) -> tvm.IRModule:
    """Return mod at level canonical; the same function up to float rounding. Idempotent."""
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(list(passes()), name="canonicalize")(mod)
