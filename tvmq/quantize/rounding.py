"""Choose whole numbers for weights so that the outputs, not the weights, are nearest to the float ones.

For weights W [K, N] in steps of s [N] and inputs of covariance H [K, K], the squared output error of whole
numbers Q is the sum over columns of (sQ - W)^T H (sQ - W). It is made small in two ways, one after the other:
error feedback, where the error of a row is made up for by the rows not yet rounded (Frantar et al., "GPTQ",
2023, section 3), then coordinate descent, where each row in turn takes the best whole numbers given all
others (Behdin et al., "QuantEase", 2023, section 3), which never makes the error larger.

All matrices have a leading axis of groups, so that the thousand 3 x 3 windows of a depthwise convolution are
rounded at once.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
Limits = tuple[int, int]  # the least and the greatest value

BLOCK = 64  # rows whose errors are passed on together
DESCENTS = 3  # passes of coordinate descent; a fourth changes hardly a number
# Added to the diagonal, of its mean: the paper's 1 %, and more where so few rows were seen that the moments
# of K inputs are half noise.
DAMPING = 0.01
DAMPING_FEW_ROWS = 0.1


def damped(metric: Tensor, rows: float) -> Tensor:
    """Return metric [G, K, K] with as much added to its diagonal as so many rows leave unsure."""
    return with_ridge(metric, max(DAMPING, DAMPING_FEW_ROWS * metric.shape[-1] / max(rows, 1)))


def with_ridge(metric: Tensor, share: float) -> Tensor:
    """Return metric [G, K, K] with a share of its diagonal's mean added to that; zeros: the identity."""
    level = metric.diagonal(dim1=1, dim2=2).abs().mean(1)
    level = torch.where(level > torch.finfo(torch.float32).tiny / share, share * level, 1.0)
    return metric + level[:, None, None] * torch.eye(metric.shape[-1])


def factored(metric: Tensor) -> Tensor:
    """Return the lower Cholesky factor of metric [G, K, K], float64.

    Where float32 sums have lost so much that a matrix is not positive definite, its diagonal is raised until
    it is.
    """
    share, wide = 1e-6, metric.double()
    factor, failed = torch.linalg.cholesky_ex(wide)
    while bool(failed.any()):
        wide = torch.where((failed != 0)[:, None, None], with_ridge(wide, share), wide)
        factor, failed = torch.linalg.cholesky_ex(wide)
        share *= 10
    found: Tensor = factor
    return found


def rounded_with_feedback(weight: Tensor, scale: Tensor, metric: Tensor, limits: Limits) -> Tensor:
    """Return whole numbers [G, K, N] within limits for weight [G, K, N] in steps of scale [G, N].

    metric: positive definite [G, K, K], as damped gives it.
    """
    order = torch.argsort(metric.diagonal(dim1=1, dim2=2), dim=1, descending=True, stable=True)
    factor = _feedback(_ordered(metric, order))
    index = order[:, :, None].expand_as(weight)
    steps = (weight / scale[:, None, :]).gather(1, index)
    values = torch.empty_like(steps)
    rows = steps.shape[1]
    for start in range(0, rows, BLOCK):
        end = min(start + BLOCK, rows)
        errors = torch.empty_like(steps[:, start:end])
        for i in range(start, end):
            values[:, i] = _whole(steps[:, i], limits)
            errors[:, i - start] = (steps[:, i] - values[:, i]) / factor[:, i, i, None]
            later = factor[:, i, i + 1 : end, None]
            steps[:, i + 1 : end] -= later * errors[:, i - start, None, :]
        steps[:, end:] -= factor[:, start:end, end:].transpose(1, 2) @ errors
    return torch.empty_like(values).scatter_(1, index, values)


def descended(weight: Tensor, scale: Tensor, metric: Tensor, values: Tensor, limits: Limits) -> Tensor:
    """Return whole numbers of no larger error than values, each row in turn the best given the others."""
    values = values.clone()
    step = scale[:, None, :]
    diagonal = metric.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float32).tiny)
    pull = metric @ (values * step - weight)  # [G, K, N]: half the error's gradient
    rows = values.shape[1]
    for _ in range(DESCENTS):
        for start in range(0, rows, BLOCK):
            end = min(start + BLOCK, rows)
            block, own = metric[:, start:end, start:end], pull[:, start:end].clone()
            before = values[:, start:end].clone()
            for i in range(start, end):
                wanted = values[:, i] - own[:, i - start] / (diagonal[:, i, None] * scale)
                best = _whole(wanted, limits)
                moved = (best - values[:, i]) * scale
                own += block[:, :, i - start, None] * moved[:, None, :]
                values[:, i] = best
            pull += metric[:, :, start:end] @ ((values[:, start:end] - before) * step)
    return values


def output_error(weight: Tensor, scale: Tensor, metric: Tensor, values: Tensor) -> Tensor:
    """Return the expected squared output error of each column, [G, N]."""
    delta = values * scale[:, None, :] - weight
    return (delta * (metric @ delta)).sum(1)


def _whole(steps: Tensor, limits: Limits) -> Tensor:
    return torch.floor(steps + 0.5).clamp_(*limits)


def _ordered(metric: Tensor, order: Tensor) -> Tensor:
    rows = metric.gather(1, order[:, :, None].expand_as(metric))
    return rows.gather(2, order[:, None, :].expand_as(metric))


def _feedback(metric: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of metric."""
    inverse = torch.cholesky_inverse(factored(metric))
    return factored(inverse).transpose(1, 2).float()
