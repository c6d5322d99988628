"""Keys and values are packed by the linears that make them, where nothing else of main reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests import tiny_transformer
from tests.passes.qdq_graphs import attention, kernels, random_input
from tvmq import reference
from tvmq.build import traced_values, with_trace
from tvmq.exactness import analyse
from tvmq.passes.attention_composite import AttentionSpec
from tvmq.passes.attention_composite import attention as attention_composite
from tvmq.passes.composites import attributes, linear
from tvmq.passes.epilogue import Epilogue
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, op_name
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.schedule.pack_keys_and_values import PackKeysAndValues
from tvmq.schedule.packed_operand import KEYS, VALUES
from tvmq.target import load_profile

VNNI = load_profile("x86_avx512_vnni")
TOKENS, WIDTH, HEADS = 21, 64, 2
SPEC = AttentionSpec(1, HEADS, TOKENS, TOKENS, WIDTH // HEADS, 8, 1 << 28, 24, 0, "int8")


def module(
    spec: AttentionSpec = SPEC, *, out_dtype: str = "int8", returned: bool = False, shared: bool = False
) -> tvm.IRModule:
    """Return an attention of three linears; returned: the keys are a result, too; shared: k is v."""
    builder = relax.BlockBuilder()
    random = np.random.default_rng(0)
    x = relax.Var("x", relax.TensorType((spec.batch * spec.keys, WIDTH), "uint8"))
    epilogue = Epilogue(out_dtype=out_dtype, low=-128, high=127)

    def call(func: relax.Function, args: list[Any], name: str) -> Any:
        return relax.Call(builder.add_func(func, f"{func.attrs['tvmq.kernel']}_{name}"), args)

    with builder.function("main", [x]):
        with builder.dataflow():
            made = {}
            for name in "qkv":
                rows = spec.batch * spec.keys
                func = linear(
                    name, epilogue, rows=rows, inputs=WIDTH, outputs=WIDTH, in_dtype="uint8", weight_bits=8
                )
                weight = random.integers(-127, 128, (WIDTH, WIDTH)).astype("int8")
                numbers = random.integers(-900, 900, WIDTH, "int32"), np.full(WIDTH, 8, "int32")
                made[name] = builder.emit(call(func, [x, *map(relax.const, (weight, *numbers))], name), name)
            k, v = made["k"], made["k" if shared else "v"]
            table = relax.const(random.integers(0, 256, 128).astype("uint8"))
            args = [made["q"], k, v, table]
            if spec.indexed:
                order = random.permutation(spec.batch * spec.queries).astype("int32")
                args += [relax.const(order), relax.const(np.argsort(order).astype("int32"))]
            mixed = builder.emit(call(attention_composite("a", spec), args, "a"), "a")
            out = builder.emit_output(relax.Tuple([mixed, k]) if returned else mixed)
        builder.emit_func_output(out)
    return builder.get()


def of_main(mod: tvm.IRModule) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return variable, function and shape of main's calls."""
    return [
        (str(b.var.name), b.value.op.name_hint, tuple(int(d) for d in b.var.ty.shape))
        for b in bindings(mod["main"])
        if isinstance(b.value, relax.Call) and isinstance(b.value.op, tvm.ir.GlobalVar)
    ]


def run(mod: tvm.IRModule) -> list[Any]:
    x = np.random.default_rng(1).integers(0, 256, [int(d) for d in mod["main"].params[0].ty.shape])
    return list(reference.run(mod, [torch.from_numpy(x.astype("uint8"))]))


def test_the_linears_of_keys_and_values_store_them_packed() -> None:
    before = module()
    after = PackKeysAndValues(VNNI)(before)
    assert of_main(after) == [
        ("q", "linear_q", (TOKENS, WIDTH)),
        ("lv", "linear_k_keys", (4, 8, 64)),
        ("lv", "linear_v_values", (12, 2, 64)),
        ("a", "attention_a_packed", (TOKENS, WIDTH)),
    ]
    described = {str(g.name_hint): attributes(f) for g, f in after.functions.items()}
    assert "linear_k" not in described
    keys, values, mixed = (
        described[name] for name in ("linear_k_keys", "linear_v_values", "attention_a_packed")
    )
    assert (keys["kernel"], keys["operand"], values["operand"]) == ("operand_linear", KEYS, VALUES)
    assert (mixed["kernel"], mixed["site"]) == ("packed_attention", "a")
    assert (keys["site"], values["site"]) == ("k", "v")
    assert all(map(torch.equal, run(before), run(after)))
    tvm.ir.assert_structural_equal(PackKeysAndValues(VNNI)(after), after, map_free_vars=True)


def test_a_trace_sees_rows_unpacked_from_what_main_stores() -> None:
    before = LowerInteger()(tiny_transformer.qdq_module())
    sites = traced_values(before, analyse(before))
    after = PackKeysAndValues(VNNI)(with_trace(before, [var for var, _ in sites]))
    assert sum(name.endswith(("_keys", "_values", "_packed")) for _, name, _ in of_main(after)) == 6
    assert "permute_dims" not in {op_name(b.value) for b in bindings(after["main"])}
    x = [torch.from_numpy(a) for a in tiny_transformer.inputs(1, seed=4)]
    wanted = reference.trace(before, x)
    found = reference.run(_only(after, "trace"), x)
    assert [tuple(f.shape) for f in found] == [tuple(value.shape) for _, value in wanted]
    assert all(torch.equal(f, value) for f, (_, value) in zip(found, wanted, strict=True))


def _only(mod: tvm.IRModule, name: str) -> tvm.IRModule:
    """Return mod with the function of this name as main."""
    result = mod.clone()
    result["main"] = mod[name]
    return result


@pytest.mark.parametrize(
    ("profile", "case"),
    [
        ("x86_avx2", {}),
        ("x86_avx_vnni", {}),
        ("x86_amx", {}),
        ("arm_dotprod", {}),
        ("x86_avx512_vnni", {"returned": True}),
        ("x86_avx512_vnni", {"shared": True}),
        ("x86_avx512_vnni", {"spec": AttentionSpec(3, 2, 7, 7, 32, 8, 1 << 28, 24, 0, "int8")}),
        (
            "x86_avx512_vnni",
            {"spec": AttentionSpec(1, 2, 21, 21, 32, 8, 1 << 28, 24, 0, "int8", indexed=True)},
        ),
        ("x86_avx512_vnni", {"spec": AttentionSpec(1, 8, 21, 21, 8, 8, 1 << 28, 24, 0, "int8")}),
    ],
)
def test_what_does_not_fit_is_left_alone(profile: str, case: dict[str, Any]) -> None:
    mod = module(**case)
    tvm.ir.assert_structural_equal(PackKeysAndValues(load_profile(profile))(mod), mod)


def test_operands_that_no_linear_makes_are_left_alone() -> None:
    mod = LowerInteger()(attention())  # of quantized inputs
    assert ("attention", "attn") in kernels(mod)
    tvm.ir.assert_structural_equal(PackKeysAndValues(VNNI)(mod), mod)
    assert random_input(mod) is not None


def test_each_is_one_kernel_of_its_own() -> None:
    dispatch = DispatchKernels(VNNI)
    dispatch(module())
    names = [call.kernel.name for call in dispatch.calls]
    assert names == [
        f"linear_{TOKENS}x64x64",
        f"linear_keys_{TOKENS}x64x64",
        f"linear_values_{TOKENS}x64x64",
        f"attention_2x{TOKENS}x32",
    ]
    assert len({call.kernel.semantics for call in dispatch.calls}) == 4
    assert {packed.layout for packed in dispatch.packed.values()} == {"linear16x4", "channels16"}
