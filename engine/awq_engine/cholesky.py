"""Cholesky factors of Gram matrices with one matrix of new memory: a layer's Gram matrix can be larger than the layer.

LAPACK factors in place what lies column by column, and a symmetric matrix stored row by row is just that. Single
precision suffices for what is damped by a hundredth of its diagonal (against double precision, one trained model's KL
moved by its standard error), and should rounding ever leave a matrix short of positive definite, it is damped more.
"""

from __future__ import annotations

import torch

from awq_engine.errors import BadInputError

ATTEMPTS = 6
"""Times the damping may grow tenfold: by then it outweighs any finite matrix."""


def damped_factor(gram: torch.Tensor, damping: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """U, upper triangular, float32 [n, n], with U^T U = gram + diag(damping).

    Args:
        gram: float32 [n, n], symmetric and positive semidefinite.
        damping: float32 [n], positive.
        order: int64 [n]; both are taken in this order of channels.
    Raises:
        BadInputError: `gram` is not finite.
    """
    for _ in range(ATTEMPTS):
        factor = gram.clone() if order is None else gram[order[:, None], order]
        factor.diagonal().add_(damping if order is None else damping[order])
        info = torch.zeros((), dtype=torch.int32, device=gram.device)
        torch.linalg.cholesky_ex(factor.mT, out=(factor.mT, info))
        if not info:
            return factor
        damping = damping * 10
    raise BadInputError("A layer's inputs on the calibration text are not finite; the model is damaged.")


def solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """X with U^T U X = `right`, float32 [n, columns]."""
    half = torch.linalg.solve_triangular(factor.mT, right, upper=False)
    return torch.linalg.solve_triangular(factor, half, upper=True)
