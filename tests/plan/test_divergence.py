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
    assert agreement([torch.tensor([[9.0, -9.0]])], [torch.tensor([[-9.0, 9.0]])]) < 1e-6


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
