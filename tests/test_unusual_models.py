"""Small models of shapes that none of the known architectures has: compiled, verified, near the float one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import tvmq

Tensor = torch.Tensor
WIDTH, HEADS, TOKENS = 32, 2, 7


class Attentive(torch.nn.Module):
    """Linears by name, and a function of them."""

    def __init__(self, forward: Callable[[Attentive, Tensor], Tensor], gain: float = 1.0) -> None:
        super().__init__()
        for name in ("q", "k", "v", "q2", "k2", "v2", "o"):
            setattr(self, name, torch.nn.Linear(WIDTH, WIDTH))
        for layer in (self.q, self.k):
            layer.weight.data *= gain
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(m: Attentive, x: Tensor, names: str = "q k v") -> Tensor:
    return F.scaled_dot_product_attention(*(heads(getattr(m, name)(x)) for name in names.split()))


def one_attention(m: Attentive, x: Tensor) -> Tensor:
    return m.o(merged(attend(m, x)))


def sum_of_attentions(m: Attentive, x: Tensor) -> Tensor:
    return m.o(merged(attend(m, x) + attend(m, x, "q2 k2 v2")))


def gated(m: Attentive, x: Tensor) -> Tensor:
    return m.o(F.glu(torch.cat([m.q(x), m.k(x)], -1)))


def far_from_zero(m: Attentive, x: Tensor) -> Tensor:
    return m.q(x + 2000.0)


def tokens_of_several_rows(m: Attentive, x: Tensor) -> Tensor:
    """One head over rows of x, permuted, then two side by side."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    q, k, v = (layer(x[0, 1:])[order].reshape(1, 1, 3, 2 * WIDTH) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).reshape(1, 6, WIDTH))


def joined_rows_permuted(m: Attentive, x: Tensor) -> Tensor:
    pairs = m.q(x[0, 1:])[torch.tensor([3, 0, 5, 1, 4, 2])].reshape(3, 2 * WIDTH)[torch.tensor([1, 2, 0])]
    return m.o(F.layer_norm(pairs, (2 * WIDTH,)).reshape(1, 6, WIDTH))


@pytest.mark.parametrize(
    ("function", "gain", "least_cosine"),
    [
        (sum_of_attentions, 1.0, 0.99),
        (gated, 1.0, 0.99),
        (far_from_zero, 1.0, 0.99),
        (tokens_of_several_rows, 1.0, 0.99),
        (joined_rows_permuted, 1.0, 0.99),
        (one_attention, 10.0, 0.97),  # softmax has all but one winner: near ties are decided by 8 bits
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_it_verifies_and_stays_near_the_float_model(
    function: Callable[[Attentive, Tensor], Tensor], gain: float, least_cosine: float
):
    torch.manual_seed(0)
    model = Attentive(function, gain).eval()
    samples = [torch.randn(1, TOKENS, WIDTH) for _ in range(9)]
    compiled = tvmq.compile(model, example_inputs=(samples[0],), calibration=samples[1:])
    result = compiled.verify(samples[0])
    assert result.ok, result.mismatches
    with torch.no_grad():
        wanted = model(samples[0])
    assert F.cosine_similarity(compiled(samples[0]).flatten(), wanted.flatten(), 0) > least_cosine


def test_a_mask_that_is_no_choice_of_keys_stays_float():
    torch.manual_seed(0)

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = Attentive(one_attention)

        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            q, k, v = (heads(layer(x)) for layer in (self.m.q, self.m.k, self.m.v))
            scores = q @ k.transpose(-1, -2) * 0.25 + (1.0 - keep[:, None, None]) * -10000.0
            return self.m.o(merged(scores.softmax(-1) @ v))

    keep = torch.tensor([[0.5, 1, 0.5, 0.5, 1, 1, 0.5]])  # 0.5 hides, though it is not 0
    samples = [(torch.randn(1, TOKENS, WIDTH), keep) for _ in range(9)]
    model = Masked().eval()
    compiled = tvmq.compile(model, example_inputs=samples[0], calibration=samples[1:])
    with torch.no_grad():
        wanted = model(*samples[0])
    assert F.cosine_similarity(compiled(*samples[0]).flatten(), wanted.flatten(), 0) > 0.99
    reasons = [row.reason for row in compiled.coverage.rows if row.kind == "attention_bias"]
    assert len(reasons) == 1
    assert "made of booleans or integers" in reasons[0]


def test_outputs_that_only_compare_floats_are_exact():
    torch.manual_seed(0)
    linear = torch.nn.Linear(WIDTH, WIDTH).eval()

    class Chooses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = linear

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.fc(x)
            return y.argmax(-1), y > 0

    samples = [torch.randn(2, 3, WIDTH) for _ in range(3)]
    compiled = tvmq.compile(Chooses().eval(), example_inputs=(samples[0],), calibration=samples)
    result = compiled.verify(samples[0])
    assert (result.ok, result.outputs, result.inexact) == (True, 2, ())
    assert [spec.dtype for spec in compiled.outputs] == ["int64", "bool"]
    assert (compiled(samples[0])[1] == (linear(samples[0]) > 0)).float().mean() > 0.95


def test_a_text_model_is_integer_from_its_ids_on_and_holds_no_float_table():
    torch.manual_seed(0)

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds = torch.nn.Embedding(5000, WIDTH), torch.nn.Embedding(2, WIDTH)
            self.norm, self.m = torch.nn.LayerNorm(WIDTH), Attentive(one_attention)
            self.words.weight.data[4999] = 9.0  # a row that calibration does not see

        def forward(self, ids: Tensor, kinds: Tensor, seen: Tensor) -> Tensor:
            x = self.norm(self.words(ids) + self.kinds(kinds))
            q, k, v = (heads(layer(x)) for layer in (self.m.q, self.m.k, self.m.v))
            mask = torch.where(seen[:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)
            return self.m.o(merged(F.scaled_dot_product_attention(q, k, v, mask)))

    def sample(high: int = 4999, batch: int = 2) -> tuple[Tensor, ...]:
        ids, kinds = torch.randint(0, high, (batch, TOKENS)), torch.randint(0, 2, (batch, TOKENS))
        seen = (torch.rand(batch, TOKENS) > 0.3).long()
        seen[:, 0] = 1
        return ids, kinds, seen

    model, given = Text().eval(), sample()
    compiled = tvmq.compile(model, example_inputs=given, calibration=[sample() for _ in range(8)])
    assert all(row.integer for row in compiled.coverage.rows)
    given[0][0, 1] = 4999
    result = compiled.verify(given)
    assert (result.ok, result.inexact) == (True, ())
    with torch.no_grad():
        wanted = model(*given)
    assert F.cosine_similarity(compiled(*given).flatten(), wanted.flatten(), 0) > 0.99
    tables = [c for c in compiled._built.constants if c.logical_shape == (5000, WIDTH)]
    assert [str(c.array.dtype) for c in tables] == ["int16"]


def test_a_sum_of_what_is_made_in_floats_may_read_what_is_stored_for_others():
    class Embedded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            n = torch.nn
            self.embed, self.norm, self.norm2 = n.Linear(16, 32), n.LayerNorm(32), n.LayerNorm(32)
            self.up, self.down, self.head = n.Linear(32, 64), n.Linear(64, 32), n.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            x = x + self.down(torch.relu(self.up(self.norm(x))))
            return self.head(self.norm2(x))

    torch.manual_seed(0)
    x = torch.randn(4, 5, 16)
    model = tvmq.compile(
        Embedded().eval(), example_inputs=(x,), calibration=[(x,), (x / 2,)], target="x86_baseline",
        preset="fast", bits={"embed": "float", "down": "float"},
    )  # fmt: skip
    integer = {row.site for row in model.coverage.rows if row.integer}
    assert {"norm", "up", "norm2", "head"} <= integer
    assert integer.isdisjoint({"embed", "down"})
