"""The descent finds the least squares of smooth, stepped and contaminated residuals."""

from __future__ import annotations

import numpy as np
import pytest

from splitrail.plan.descend import cost, descend

TRUE = np.array([0.4, -1.1])
GRID = np.linspace(0, 1, 30)


def curve(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x[0]) + np.exp(x[1]) * GRID**2)


def test_smooth() -> None:
    found = descend(lambda x: 100 * (curve(x) - curve(TRUE)), np.zeros(2), robust=False)
    assert found == pytest.approx(TRUE, abs=0.01)


def test_steps_as_a_simulation_makes_them() -> None:
    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(100 * (np.round(curve(x), 2) - curve(TRUE)))

    assert descend(residuals, np.zeros(2), robust=False) == pytest.approx(TRUE, abs=0.05)


def test_one_bad_point_does_not_pull_a_robust_fit() -> None:
    seen = curve(TRUE)
    seen[-1] *= 2

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(100 * (curve(x) - seen))

    far, near = (
        np.abs(descend(residuals, np.zeros(2), robust=robust) - TRUE).max() for robust in (False, True)
    )
    assert near < 0.03 < far


def test_costs() -> None:
    assert cost(np.array([3.0]), robust=False) == 4.5
    assert cost(np.array([3.0]), robust=True) == pytest.approx(np.sqrt(10) - 1)
