"""Layer norm and attention: their PrimFuncs, and what may be decided about them."""

from __future__ import annotations

from math import ceil

from tvm import tirx

from tvmq.numerics import INTEGER_RANGE, SOFTMAX_TABLE_SIZE
from tvmq.schedule.attention_spec import AttentionSpec
from tvmq.schedule.attention_spec import supports as supports_attention
from tvmq.schedule.cuda.gpu import GpuModel
from tvmq.schedule.cuda.launch import C_TYPES, Call, Launch, device_prim_func, template
from tvmq.schedule.cuda.product import WARP
from tvmq.schedule.layer_norm import LayerNormSpec
from tvmq.schedule.space import Space

MOST_WARPS = 8
QUERIES_PER_WARP = 16
PADDING = 16  # of a key in shared memory; see device/attention.cuh
MOST_HEAD_DIM = 256  # a warp's sums of 16 queries: half the registers of a thread


def layer_norm_space(spec: LayerNormSpec, gpu: GpuModel) -> Space:
    """Return how many rows a block may have; by default as few as keep every processor busy."""
    warps = 1
    while warps < 4 and spec.rows / (2 * warps) >= gpu.processors:
        warps *= 2
    return Space({"warps": (1, 2, 4, 8)}, {"warps": warps})


def layer_norm_prim_func(spec: LayerNormSpec, warps: int) -> tirx.PrimFunc:
    """Return the kernel (x, gain, offset[, index], out[, copy])."""
    shift, zero_point, *clip = spec.copy or (0, 0)
    shape = (spec.rows, spec.channels)
    kernel = {
        "x": ((spec.rows * (spec.pieces or 1), spec.width), "int16"),
        "gain": ((spec.channels,), "int32"),
        "offset": ((spec.channels,), "int32"),
        **({"index": ((spec.rows * spec.pieces,), "int32")} if spec.pieces else {}),
        "out": (shape, spec.out_dtype),
        **({"copy": (shape, "uint8")} if spec.copy is not None else {}),
    }
    numbers = (*shape, spec.pieces, spec.gain_shift, f"{spec.epsilon}LL", spec.limit, *spec.clip)
    copied = (spec.copy is not None, shift, zero_point, *(clip or INTEGER_RANGE["uint8"]))
    norm = template("Norm", C_TYPES[spec.out_dtype], *numbers, *copied)
    names = ("x", "gain", "offset", "index", "out", "copy")
    call = Call(template("layer_norm", norm), [name if name in kernel else None for name in names])
    results = [name for name in ("out", "copy") if name in kernel]
    launch = Launch(ceil(spec.rows / warps), warps * WARP)
    return device_prim_func("layer_norm", kernel, results, launch, call)


def supports(spec: AttentionSpec) -> str | None:
    """Return why there is no kernel for an attention, None when there is one."""
    if spec.head_dim > MOST_HEAD_DIM:
        return f"head_dim {spec.head_dim} is over {MOST_HEAD_DIM}"
    return supports_attention(spec)


def attention_space(spec: AttentionSpec, gpu: GpuModel) -> Space:
    """Return how many times 16 queries a block may have; by default as many as keep every processor busy."""
    warps, tasks = 1, spec.batch * spec.heads
    while warps < 4 and ceil(spec.queries / (2 * warps * QUERIES_PER_WARP)) * tasks >= gpu.processors:
        warps *= 2
    return Space({"warps": (1, 2, 4, MOST_WARPS)}, {"warps": warps})


def attention_prim_func(spec: AttentionSpec, warps: int) -> tirx.PrimFunc:
    """Return the kernel (q, k, v, table[, biases...][, mask][, index, inverse], out)."""
    width, s = spec.heads * spec.head_dim, spec
    tokens = {"q": s.queries, "k": s.keys, "v": s.keys}
    kernel: dict[str, tuple[tuple[int, ...], str]]
    kernel = {name: ((s.batch * count, width), "int8") for name, count in tokens.items()}
    kernel["table"] = ((SOFTMAX_TABLE_SIZE,), "uint8")
    for number, sizes in enumerate(s.biases):
        kernel[f"bias{number}"] = ((*sizes, s.queries, s.keys), "int16")
    if s.mask is not None:
        kernel["mask"] = ((*s.mask, s.keys), "uint8")
    if s.indexed:
        kernel |= {name: ((s.batch * s.queries,), "int32") for name in ("index", "inverse")}
    kernel["out"] = ((s.batch * s.queries, width), s.out_dtype)
    names = ("q", "k", "v", "table", "bias0", "bias1", "mask", "index", "out")
    operands = Call("tvmq::attention_operands", [name if name in kernel else None for name in names])
    call = Call(template("attention", _shape(spec), warps), ("shared", operands))
    blocks = ceil(s.queries / (warps * QUERIES_PER_WARP)) * s.heads * s.batch
    launch = Launch(blocks, warps * WARP, attention_bytes(spec))
    return device_prim_func("attention", kernel, ("out",), launch, call)


def attention_bytes(spec: AttentionSpec) -> int:
    """Return the shared memory of a block: two tiles of keys and two of values; see device/attention.cuh."""
    tile = 32 if spec.head_dim > 128 else 64
    key, value = ceil(spec.head_dim / 32) * 32 + PADDING, (spec.head_dim // 16 | 1) * 16
    return 2 * tile * (key + value)


def _shape(s: AttentionSpec) -> str:
    biases = [template("Bias", *sizes) for sizes in s.biases] + [template("Bias", 0, 1)] * (2 - len(s.biases))
    batches, queries = s.mask or (1, 1)
    mask = template("Mask", s.mask is not None, batches > 1, queries > 1)
    numbers = (s.score_shift, s.numerator, s.norm_shift, s.zero_point, *s.clip)
    sizes = (s.heads, s.queries, s.keys, s.head_dim)
    return template("AttentionShape", *sizes, *numbers, s.indexed, *biases, mask)
