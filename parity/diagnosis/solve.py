"""Solve for a number that explains a difference, and write it as short as possible."""

from collections.abc import Callable, Sequence

import numpy as np

STEPS = 12  # of Gauss and Newton's method
ALONG = 0.3  # cosine between the effect of changing the number and the remaining difference: below, it is another cause


def solve(
    function: Callable[[float], np.ndarray | None], target: np.ndarray, starts: Sequence[float], bound: float
) -> float | None:
    """Find x with function(x) = target within `bound` of the target's largest value, in as few digits as suffice.

    None if there is none near `starts`. The function gives None where it is not defined.
    """
    scale = float(np.abs(target).max(initial=0)) or 1.0

    def residual(x: float) -> np.ndarray | None:
        value = function(x) if np.isfinite(x) else None
        fits = value is not None and value.shape == target.shape and np.isfinite(value).all()
        return (value - target).ravel() / scale if value is not None and fits else None

    for start in starts:
        found = _newton(residual, start, bound)
        if found is not None:
            return shortest(found, lambda x: (r := residual(x)) is not None and np.abs(r).max(initial=0) <= bound)
    return None


def _newton(residual: Callable[[float], np.ndarray | None], x: float, bound: float) -> float | None:
    best, r = np.inf, residual(x)
    for step in range(STEPS):
        if r is None:
            return None
        size = np.abs(r).max(initial=0)
        if size <= bound / 8 or (size <= bound and size >= best):
            return x
        best = min(best, size)
        h = abs(x) * 1e-4 or 1e-6
        moved = residual(x + h)
        if moved is None:
            return None
        slope = (moved - r) / h
        length = float(np.linalg.norm(slope))
        along = -float(slope @ r) / length / (float(np.linalg.norm(r)) or 1.0) if length else 0.0
        if step < 3 and abs(along) < ALONG:
            return None
        move = -float(slope @ r) / length**2 if length else 0.0
        new = residual(x + move)
        while (new is None or np.abs(new).max() > 2 * size) and abs(move) > 1e-3 * h:
            move /= 4
            new = residual(x + move)
        x, r = x + move, new
    return x if r is not None and np.abs(r).max(initial=0) <= bound else None


def shortest(x: float, fits: Callable[[float], bool]) -> float:
    """Write a number with as few digits as fit."""
    for digits in range(1, 8):
        short = float(f"{x:.{digits - 1}e}")
        if short == x or (abs(short - x) <= 1e-2 * abs(x) and fits(short)):
            return short
    return x
