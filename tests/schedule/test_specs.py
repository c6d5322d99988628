"""The attributes of composites say all that a kernel's spec holds."""

from __future__ import annotations

from tvmq.numerics import softmax_table
from tvmq.passes import attention_composite, composites, pool_composite
from tvmq.passes.composites import attributes
from tvmq.passes.conv_geometry import ConvGeometry
from tvmq.passes.epilogue import Copy, Epilogue
from tvmq.passes.pool_composite import Pooling
from tvmq.schedule.specs import attention_spec_of, layer_norm_spec_of, pool_spec_of, product_spec_of


def test_clip_bounds_at_the_ends_of_the_dtype_are_left_out():
    epilogue = Epilogue(out_dtype="int16", low=-32768, high=32767, residual=True, copy=Copy(3, 5, 2, 15))
    func = composites.linear("a", epilogue, rows=3, inputs=8, outputs=5, in_dtype="uint8")
    spec = product_spec_of(attributes(func), 3, 8, 5)
    assert (spec.rows, spec.inputs, spec.outputs) == (3, 8, 5)
    assert (spec.low, spec.high, spec.copy, spec.residual) == (None, None, (3, 5, 2, 15), True)


def test_a_layer_norm_of_pieces_has_fewer_rows_than_its_input():
    numbers = {"low": 0, "high": 200, "gain_shift": 10, "epsilon": 3, "limit": 1 << 14}
    func = composites.layer_norm("n", rows=4, channels=8, out_dtype="uint8", pieces=2, **numbers)
    spec = layer_norm_spec_of(attributes(func), [(8, 4), (8,), (8,), (8,)])
    assert (spec.rows, spec.channels, spec.pieces, spec.clip) == (4, 8, 2, (0, 200))


def test_an_attention_knows_its_biases_and_mask_by_their_shapes():
    sizes = {"batch": 4, "heads": 2, "queries": 3, "keys": 5, "head_dim": 16}
    numbers = {"score_shift": 9, "numerator": 1, "norm_shift": 24, "zero_point": 128, "out_dtype": "uint8"}
    wanted = attention_composite.AttentionSpec(**sizes, **numbers, biases=((2, 1),), mask=(4, 1))
    func = attention_composite.attention("a", wanted)
    shapes = [tuple(int(d) for d in p.ty.shape) for p in func.params]
    assert shapes[3] == softmax_table().shape
    assert attention_spec_of(attributes(func), shapes) == wanted


def test_a_pool_is_its_geometry_and_its_numbers():
    geometry = ConvGeometry(
        batch=1, rows=4, columns=4, channels=3, outputs=3, kernel_rows=2, kernel_columns=2
    )
    pooling = Pooling(operation="max", in_dtype="uint8", out_dtype="uint8")
    found = pool_spec_of(attributes(pool_composite.pool("p", pooling, geometry)))
    assert (found.geometry, found.pooling) == (geometry, pooling)
