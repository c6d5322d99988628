"""The numbers of a quantizer land where they belong: the golden module of a linear, a table and a trunk."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tests.passes.qdq_graphs import random_input
from tvmq import reference
from tvmq.formats import Quantization, QuantizedWeight, QuantParams
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.verify_level import verify

FLOAT_WEIGHT = np.array([[0.26, -0.2], [0.7, 16.0]], np.float32)
FLOAT_BIAS, BIAS = np.float32([3.0, -1.0]), np.float32([3.1, -1.1])
OTHER = np.array([[0.3, 900.0]], np.float32)
WEIGHT = QuantizedWeight(np.array([[1, -2], [3, 127]], np.int8), np.array([0.25, 0.125], np.float32))


@I.ir_module
class Float:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            fc = R.matmul(x, R.const(FLOAT_WEIGHT))
            biased = R.add(fc, R.const(FLOAT_BIAS))
            active = R.nn.gelu(biased)
            shifted = R.add(x, R.const(OTHER))
            out = R.add(active, shifted)
            R.output(out)
        return out


# x is the int16 trunk, and fc reads its uint8 copy; `shifted` adds a constant in the trunk's storage.
TRUNK, COPY = QuantParams(2.0**-8, 0, "int16"), QuantParams(2.0**-4, 100, "uint8")
HIDDEN = QuantParams(0.5, 7, "uint8")
NUMBERS = Quantization(
    values={"x": TRUNK, "biased": HIDDEN},
    also_uint8={"x": COPY},
    constants={"shifted": TRUNK},
    weights={"fc": WEIGHT},
    biases={"biased": BIAS},
    uint8_readers=frozenset({"fc"}),
)
STEPS = np.array([[77, 32767]], np.int16)  # 0.3 / 2**-8 = 76.8; 900 is past the range


@I.ir_module
class Qdq:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            xq = R.quantize(x, R.const(2.0**-8, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            xdq = R.dequantize(xq, R.const(2.0**-8, "float32"), R.const(0, "int16"), axis=-1)
            xu = R.quantize(
                xdq, R.const(2.0**-4, "float32"), R.const(100, "uint8"), axis=-1, out_dtype="uint8"
            )
            xudq = R.dequantize(xu, R.const(2.0**-4, "float32"), R.const(100, "uint8"), axis=-1)
            weight = R.dequantize(
                R.const(WEIGHT.values), R.const(WEIGHT.scale), R.const(np.zeros(2, np.int8)), axis=1
            )
            fc = R.matmul(xudq, weight)
            biased = R.add(fc, R.const(BIAS))
            bq = R.quantize(biased, R.const(0.5, "float32"), R.const(7, "uint8"), axis=-1, out_dtype="uint8")
            bdq = R.dequantize(bq, R.const(0.5, "float32"), R.const(7, "uint8"), axis=-1)
            active = R.nn.gelu(bdq)
            other = R.dequantize(R.const(STEPS), R.const(2.0**-8, "float32"), R.const(0, "int16"), axis=-1)
            shifted = R.add(xdq, other)
            out = R.add(active, shifted)
            result: R.Tensor((3, 2), "float32") = out
            R.output(result)
        return result


def test_every_number_is_written_where_it_belongs():
    after = InsertQdq(NUMBERS)(Float)
    tvm.ir.assert_structural_equal(after, Qdq, map_free_vars=True)
    verify(after, "qdq")


def test_names_stay_so_that_sites_are_found_again():
    names = [str(b.var.name) for b in InsertQdq(NUMBERS)(Float)["main"].body.blocks[0].bindings]
    assert {"fc", "biased", "active", "x.q", "x.uint8.dq", "fc.weight", "biased.dq"} <= set(names)


def test_without_numbers_the_function_stays():
    x = random_input(Float)
    same = InsertQdq(Quantization({}, {}, {}, {}, {}, frozenset()))(Float)
    assert reference.run(same, [x])[0].equal(reference.run(Float, [x])[0])


FEW = np.array([[10, 15]], np.uint8)  # 0.3 / 2**-4 + 5 = 9.8; 900 is past the limits


@I.ir_module
class FewBits:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            xc = R.clip(x, R.prim_value(T.float64(-0.3125)), R.prim_value(T.float64(0.625)))
            xq = R.quantize(xc, R.const(0.0625, "float32"), R.const(5, "uint8"), axis=-1, out_dtype="uint8")
            xdq = R.dequantize(xq, R.const(0.0625, "float32"), R.const(5, "uint8"), axis=-1)
            other = R.dequantize(
                R.const(FEW),
                R.const(0.0625, "float32"),
                R.const(5, "uint8"),
                axis=-1,
            )
            shifted = R.add(xdq, other)
            result: R.Tensor((3, 2), "float32") = shifted
            R.output(result)
        return result


@I.ir_module
class Shifted:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            shifted = R.add(x, R.const(OTHER))
            R.output(shifted)
        return shifted


def test_limits_are_a_clip_before_quantize():
    few = QuantParams(0.0625, 5, "uint8", (0, 15))
    numbers = Quantization({"x": few}, {}, {"shifted": few}, {}, {}, frozenset())
    after = InsertQdq(numbers)(Shifted)
    tvm.ir.assert_structural_equal(after, FewBits, map_free_vars=True)
    verify(after, "qdq")
    assert "x.clip" in [str(b.var.name) for b in after["main"].body.blocks[0].bindings]
