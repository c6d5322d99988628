import pytest
import torch

from tvmq.plan.divergence import agreement, divergence, names_classes, random_loss


def test_classes_are_compared_as_distributions_and_other_outputs_by_their_squares():
    random = torch.Generator().manual_seed(0)
    scores, near = torch.randn(3, 5, generator=random), 0.01 * torch.randn(3, 5, generator=random)
    p = scores.softmax(1)
    wanted = float((p * (p.log() - (scores + near).softmax(1).log())).sum())
    assert names_classes([scores])
    assert divergence([scores], [scores + near]) == pytest.approx(wanted, rel=0.01)
    assert divergence([scores], [scores + 7]) == pytest.approx(0, abs=1e-9)
    maps = torch.randn(2, 4, 5, generator=random)
    assert divergence([maps], [1.1 * maps]) == pytest.approx(0.02)
    assert agreement([maps], [1.1 * maps]) == pytest.approx(1.98)
    assert agreement([scores], [scores]) == pytest.approx(3)
    assert agreement([p], [p]) == pytest.approx(3)
    assert divergence([p], [(scores + near).softmax(1)]) == pytest.approx(wanted, rel=0.01)
    many, others = (4 * torch.randn(20, 1000, generator=random) for _ in range(2))
    unlike = agreement([many], [others])
    assert unlike < 2
    assert agreement([many.softmax(1)], [others.softmax(1)]) == pytest.approx(unlike, rel=1e-3)
    one = torch.tensor(2.0)  # an output without axes
    assert (divergence([one], [one + 1]), agreement([one], [one])) == (0.25, 1)
    random_loss([one.requires_grad_()], random).backward()
    # Both columns of a regression off by 5: no distribution tells.
    numbers = torch.randn(100, 2, generator=random)
    assert agreement([numbers], [numbers + 5]) < 0
    assert agreement([torch.tensor([[9.0, -9.0]])], [torch.tensor([[-9.0, 9.0]])]) < 1e-6


def test_gradients_of_probabilities_are_those_of_their_scores():
    random = torch.Generator().manual_seed(2)
    scores = torch.randn(4, 6, generator=random, requires_grad=True)
    found = []
    for output in (scores, scores.softmax(1)):
        loss = random_loss([output], torch.Generator().manual_seed(3))
        found.append(torch.autograd.grad(loss, scores, retain_graph=True)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4)])
def test_gradients_of_random_losses_tell_the_divergence_of_small_errors(shape: tuple[int, ...]):
    random = torch.Generator().manual_seed(1)
    exact, error = torch.randn(shape, generator=random), 0.02 * torch.randn(shape, generator=random)
    totals = []
    for _ in range(3000):
        value = exact.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(random_loss([value], random), value)
        totals.append(float((gradient * error).flatten(1).sum(1).square().sum()) / 2)
    assert sum(totals) / len(totals) == pytest.approx(divergence([exact], [exact + error]), rel=0.15)
