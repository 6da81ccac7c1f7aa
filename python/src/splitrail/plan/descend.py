"""Least squares over a simulation, whose residuals are smooth only from afar.

A trust region (scipy's) shrinks to nothing at the first kink. Here differences are taken over wide steps,
which narrow only when nothing more is gained, and each direction is tried with several dampings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# In logarithms: 10 %, then finer.
WIDTHS = (0.10, 0.05, 0.025)
DAMPINGS = (0.0, 0.1, 1.0, 10.0)
LONGEST = 0.7
GAIN = 0.003
ROUNDS = 6

Residuals = Callable[[np.ndarray], np.ndarray]


def cost(residuals: np.ndarray, *, robust: bool) -> float:
    """Half the sum of squares, or of soft absolute values beyond 1."""
    squares = residuals**2
    return float(np.sum(np.sqrt(1 + squares) - 1) if robust else np.sum(squares) / 2)


def descend(residuals: Residuals, start: np.ndarray, *, robust: bool) -> np.ndarray:
    """The place of the least cost that is found from ``start`` (coordinates of about unit meaning)."""
    at, here = start.copy(), residuals(start)
    for width in WIDTHS:
        for _ in range(ROUNDS):
            slopes = np.array([(residuals(at + width * unit) - here) / width for unit in np.eye(len(at))]).T
            before = cost(here, robust=robust)
            tried = [(at + step, residuals(at + step)) for step in _steps(slopes, here, robust=robust)]
            best = min(tried, key=lambda one: cost(one[1], robust=robust))
            after = cost(best[1], robust=robust)
            if after < before:
                at, here = best
            if after > before * (1 - GAIN):
                break
    return at


def _steps(slopes: np.ndarray, here: np.ndarray, *, robust: bool) -> Sequence[np.ndarray]:
    weights = 1 / np.sqrt(1 + here**2) if robust else np.ones(len(here))
    square = slopes.T @ (weights[:, None] * slopes)
    down = -slopes.T @ (weights * here)
    steps = []
    for damping in DAMPINGS:
        step = np.linalg.solve(square + np.diag(damping * np.diag(square) + 1e-9), down)
        steps.append(step * min(1.0, LONGEST / max(float(np.abs(step).max()), 1e-12)))
    return steps
