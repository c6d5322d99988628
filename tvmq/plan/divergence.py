"""How far a model's outputs are from float, and losses whose gradients tell that of small errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvmq.calibrate.batches import samples_in

Tensor = torch.Tensor
NOTHING = 1e-30  # stands for the square of an output of zeros, and for a probability of zero
SUM_OF_ONE = 1e-3  # how far from 1 probabilities may add up to
FEW = 16  # columns that may as well be numbers of their own, of a regression


def names_classes(outputs: Sequence[Tensor]) -> bool:
    """Tell whether outputs look like the scores of classes: one matrix [N, classes]."""
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1


def _log_probabilities(values: Tensor, *, scores: bool) -> Tensor:
    return values.log_softmax(1) if scores else values.clamp_min(NOTHING).log()


def are_scores(outputs: Sequence[Tensor]) -> bool:
    """Tell whether the outputs of classes are scores: not of a model that ends in a softmax."""
    values = outputs[0].detach().double()
    return bool((values < 0).any() or ((values.sum(1) - 1).abs() > SUM_OF_ONE).any())


def divergence(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the sum over samples of KL(wanted || found) of classes, or of the relative squared error."""
    if names_classes(wanted):
        scores = are_scores(wanted)
        p, q = (_log_probabilities(values[0].double(), scores=scores) for values in (wanted, found))
        return float((p.exp() * (p - q)).sum())
    return _relative(wanted, found)


def random_loss(outputs: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """Return a loss whose gradients' outer product is, in the mean, the metric that divergence has."""
    if names_classes(outputs):
        scores = _log_probabilities(outputs[0], scores=are_scores(outputs))
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=random)
        return scores.gather(1, drawn).sum()
    parts = []
    for value in outputs:
        signs = torch.randint(0, 2, value.shape, generator=random) * 2.0 - 1
        size = value.detach().square().sum().clamp_min(NOTHING) * len(outputs) / (2 * samples_in([value]))
        parts.append((value * signs).sum() / size.sqrt())
    return torch.stack(parts).sum()


def agreement(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the sum over samples of a likeness that is 1 for equal outputs.

    Of classes: the share of probability that both give to the same ones. Otherwise 1 less the relative error;
    of few columns, which may be either, the smaller of the two.
    """
    if not names_classes(wanted):
        return samples_in(wanted) - divergence(wanted, found)
    scores = are_scores(wanted)
    p, q = (_log_probabilities(each[0].double(), scores=scores).exp() for each in (wanted, found))
    shared = float(torch.minimum(p, q).sum())
    if not scores or wanted[0].shape[1] > FEW:
        return shared
    return min(shared, len(wanted[0]) - _relative(wanted, found))


def likeness(wanted: Sequence[Tensor]) -> str:
    """Return what agreement is of such outputs."""
    shared, relative = "probability given to the same classes", "1 less the relative squared error"
    if not names_classes(wanted):
        return relative
    either = are_scores(wanted) and wanted[0].shape[1] <= FEW
    return f"the smaller of {shared} and {relative}" if either else shared


def _relative(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the sum over samples of the squared error, relative to the squares of what is wanted."""
    total = 0.0
    for exact, other in zip(wanted, found, strict=True):
        exact, other = exact.double(), other.double()
        finite = torch.isfinite(exact)
        error = (other - exact)[finite].square().sum()
        total += float(samples_in([exact]) * error / exact[finite].square().sum().clamp_min(NOTHING))
    return total / max(len(wanted), 1)
