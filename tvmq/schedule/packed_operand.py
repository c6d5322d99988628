"""Keys and values of an attention as its dots want them, stored so by the linears that make them.

64 bytes that one dot of uint8 by int8 multiplies lie together:

    keys    [batch * heads * blocks of 16 keys, dims / 4, 16 keys x 4 dims]
    values  [batch * heads * words of 4 keys, dims / 16, 16 dims x 4 keys]

What is past the last key of a head repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvmq.passes.attention_composite import AttentionSpec
from tvmq.schedule.linear_spec import DEPTH, LANES

KEYS, VALUES = "keys", "values"
OPERAND_LINEAR, PACKED_ATTENTION = "operand_linear", "packed_attention"  # kinds of composites: `tvmq.kernel`
ROWS = 4  # of a linear that are stored together: a word of values, a quarter of a block of keys


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedOperand:
    """The layout of one operand, whose plain form is int8 [batch * tokens, heads * head_dim]."""

    operand: str
    batch: int
    tokens: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, spec: AttentionSpec, operand: str) -> PackedOperand:
        """Return the layout of the keys or the values of an attention."""
        return cls(
            operand=operand, batch=spec.batch, tokens=spec.keys, heads=spec.heads, head_dim=spec.head_dim
        )

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> PackedOperand:
        """Return the layout that a composite's attributes name."""
        return cls(**{name: attrs[name] for name in cls.__slots__})

    @property
    def together(self) -> int:
        """Return how many tokens lie in the same 64 bytes."""
        return LANES if self.operand == KEYS else DEPTH

    @property
    def dims_together(self) -> int:
        """Return how many dims lie in the same 64 bytes."""
        return DEPTH if self.operand == KEYS else LANES

    @property
    def steps(self) -> int:
        """Return into how many parts the tokens of a head are cut."""
        return -(-self.tokens // self.together)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the sizes [batch * heads * parts of tokens, parts of dims, 64]."""
        parts = self.head_dim // self.dims_together
        return self.batch * self.heads * self.steps, parts, self.together * self.dims_together


def supports(spec: AttentionSpec) -> str | None:
    """Return why linears cannot pack the keys and values of an attention, None where they can."""
    if spec.indexed:
        return "rows in another order do not lie in fours"
    if spec.head_dim % LANES:
        return f"head_dim {spec.head_dim} is not a multiple of {LANES}"
    if spec.batch > 1 and spec.keys % LANES:
        return f"{spec.keys} keys of each of {spec.batch} batches do not fill blocks of {LANES}"
    return None
