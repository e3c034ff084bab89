"""What counts as equal: errors, the bounds they are held to, and what a comparison says."""

from dataclasses import dataclass
from math import inf, log, sqrt

import numpy as np

FLOAT64_BOUND = 1e-12
# 200 steps of training multiply a difference: by 10 to 1000 with the tutorial's learning rate and batches of 8.
TRAJECTORY_BOUND = 1e-9
# PyTorch's own error is one throw of the dice, and can be nothing. A sum of K products has an error of about
# sqrt(K) / 2 units in the last place (Higham and Mary 2019): 45 for the longest sum here, of 8192, when they are added
# one by one. Both frameworks add in blocks and lanes and come to 1 to 6 units; 2 are granted for each of four layers.
FLOOR = 8 * float(np.finfo(np.float32).eps)
FACTOR = 2.0
LEFT_OUT = 0.5  # of the images of a case, or the stretches of training: where float32 decides otherwise than float64
CHANCE = 1e-6  # of a statistical check to fail where nothing is wrong


@dataclass(frozen=True)
class Check:
    """One comparison.

    name: `float64/gradients/conv1.weight@ties`.  error: max|a-b| / max|b| or an error of another kind, never NaN.
    pytorch: PyTorch's own error against the truth, where that is what the bound is made of.
    index, ours, truth: where a tensor's error is largest, and both values there.  where: at which step, or what else.
    """

    name: str
    error: float
    bound: float
    pytorch: float | None = None
    index: list[int] | None = None
    ours: float = 0.0
    truth: float = 0.0
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """The error as a part of its bound."""
        return self.error / self.bound if self.bound else inf * self.error if self.error else 0.0

    def __str__(self) -> str:
        values = "" if self.index is None else f" at {self.index}: JAX {self.ours:.9g}, PyTorch {self.truth:.9g}"
        return f"{self.name}: error {self.error:.3g}, bound {self.bound:.3g}{self.where and ', '}{self.where}{values}"


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """max|found - truth| / max|truth|; 0 for two arrays of zeros, infinite for other shapes, NaN, or zeros missed."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape:
        return inf
    difference, scale = np.abs(found - truth).max(initial=0), np.abs(truth).max(initial=0)
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale and np.isfinite(difference / scale) else inf


def judge(
    name: str, ours: np.ndarray, truth: np.ndarray, pytorch: np.ndarray | None = None, bound: float = FLOAT64_BOUND,
    where: str = "",
) -> Check:  # fmt: skip
    """Compare with the truth: within `bound`, or, where PyTorch's float32 is given, within twice its own error."""
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    own = None if pytorch is None else error(pytorch, truth)
    bound = bound if own is None else max(FACTOR * own, FLOOR)
    if ours.shape != truth.shape:
        return Check(name, inf, bound, own, where=f"shape {ours.shape}, should be {truth.shape}")
    index = np.unravel_index(np.abs(ours - truth).argmax(), ours.shape)  # NaN counts as the largest
    place = [int(i) for i in index]
    return Check(name, error(ours, truth), bound, own, place, float(ours[index]), float(truth[index]), where)


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest distance of two samples' distribution functions, and what it exceeds by CHANCE for equal ones.

    Smirnov (1948): c sqrt((n + m) / (n m)) with c = sqrt(-ln(CHANCE / 2) / 2).
    """
    everything = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(sample), everything, side="right") / len(sample) for sample in (a, b)]
    critical = sqrt(-log(CHANCE / 2) / 2 * (len(a) + len(b)) / (len(a) * len(b)))
    return float(np.abs(below[0] - below[1]).max()), critical
