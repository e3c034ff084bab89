"""Describe the pattern of an error that nothing explains."""

from collections.abc import Sequence

import numpy as np

from parity.bounds import FLOAT64_BOUND

SIGMAS = 4.0  # standard deviations of a sum of errors of random signs
SINGLE = 1e-6  # errors below are of float32's rounding


def how_it_lies(ours: np.ndarray, truth: np.ndarray | None, axes: Sequence[str] = ()) -> str:
    """Say where Flax's array differs: at borders, in channels or rows, by a factor, increasingly, only in float32."""
    if truth is None:
        return f"Flax has shape {list(ours.shape)}, which PyTorch's does not fit"
    difference = np.abs(ours - truth)
    scale = np.abs(truth).max(initial=0) or 1.0
    wrong = difference > FLOAT64_BOUND * scale
    if difference.max(initial=0) < SINGLE * scale:
        return (
            f"the error is of the size of float32's rounding, {difference.max() / scale:.1e}: a cast may be in float32"
        )
    words = [
        f"{wrong.mean():.0%} of the values differ, by up to {difference.max(initial=0) / scale:.1e} of the largest"
    ]
    nonzero = np.abs(truth) > 1e-9 * scale
    ratios = ours[nonzero] / truth[nonzero]
    if ratios.size and np.ptp(ratios) <= 1e-9 * np.abs(ratios).max():
        return f"all values are {ratios.mean():.6g} times PyTorch's"
    if np.sort(ours, axis=None).shape == truth.ravel().shape and np.allclose(
        np.sort(ours, axis=None), np.sort(truth, axis=None), rtol=1e-9, atol=FLOAT64_BOUND * scale
    ):
        return "the values are PyTorch's, in another order"
    for axis, name in enumerate(axes) if axes else _axes(ours.ndim):
        others = tuple(i for i in range(ours.ndim) if i != axis)
        along = wrong.any(axis=others)
        if not along.all():
            where = np.flatnonzero(along)
            words.append(f"only in {name} {', '.join(map(str, where[:6]))}{' ...' if len(where) > 6 else ''}")
            ends = {*range(2), *range(len(along) - 2, len(along))}
            if name in ("row", "column", "position") and {*where} <= ends:
                words[-1] += " (the border)"
        elif len(along) > 3:
            size = difference.max(axis=others)
            if (np.diff(size) > 0).all() and size[-1] > 2 * size[0]:
                words.append(f"growing with the {name}")
    return "; ".join(words)


def noisy(ours: np.ndarray, truth: np.ndarray) -> bool:
    """Tell if an error looks like rounding: over the rows its mean is 0, and it does not follow the values."""
    rows = (-1, truth.shape[-1] if truth.ndim > 1 else 1)
    wrong, values = (ours - truth).reshape(rows), (truth - truth.mean()).reshape(rows)
    means = np.stack([wrong.mean(axis=1), (wrong * values).mean(axis=1)])
    return bool((np.abs(means.sum(axis=1)) <= SIGMAS * np.linalg.norm(means, axis=1)).all())


def _axes(ndim: int) -> list[tuple[int, str]]:
    """Name the axes of an array with channels last."""
    names = {2: ["image", "feature"], 3: ["image", "position", "feature"], 4: ["image", "row", "column", "channel"]}
    return list(enumerate(names.get(ndim, [f"index of axis {i}" for i in range(ndim)])))
