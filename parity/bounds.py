"""What counts as equal: errors, the bounds they are held to, kinks, and what a comparison says."""

from dataclasses import dataclass
from math import ceil, inf, log2, sqrt
from typing import Any

import numpy as np

FLOAT64_BOUND = 1e-12
EPSILON = float(np.finfo(np.float32).eps)
FACTOR = 2.0  # JAX may be off by so many times what PyTorch is
LEFT_OUT = 0.5  # of the images of a case, or the stretches of training: those that float32 decides unlike float64


def float32_floor(weights: dict[str, np.ndarray]) -> float:
    """Give the float32 error that is granted to a network, by its depth and its longest sum.

    PyTorch's own error is one throw of the dice, and can be nothing. A sum of K products, added one by one, is off by
    about sqrt(K) / 2 units in the last place (Higham and Mary 2019). Both frameworks add in blocks and lanes, which is
    like adding in pairs: sqrt(log2 K) / 2 units. They are granted for each layer: 2 for each of four, if K is 8192.
    """
    fans = [array[0].size for array in weights.values() if array.ndim > 1]
    return EPSILON * len(fans) * ceil(sqrt(log2(max(fans))) / 2)


@dataclass(frozen=True)
class Check:
    """One comparison.

    precision, link, tensor, case: what was compared.  error: max|a-b| / max|b| or an error of another kind, never NaN.
    pytorch: PyTorch's own error against the truth, if the bound is made of it.
    index, ours, truth: where a tensor's error is largest, and both values there.  note: what else there is to say.
    step: of training, after which it was compared.  points: step, error and PyTorch's own at each comparison till then.
    """

    precision: str
    link: str
    tensor: str
    error: float
    bound: float
    case: str = ""
    step: int | None = None
    pytorch: float | None = None
    index: list[int] | None = None
    ours: float = 0.0
    truth: float = 0.0
    note: str = ""
    points: tuple[tuple[int, float, float], ...] = ()

    @property
    def name(self) -> str:
        """Name the comparison: `float64/gradients/conv1.weight@ties`."""
        return f"{self.precision}/{self.link}/{self.tensor}{self.case and '@'}{self.case}"

    @property
    def passed(self) -> bool:
        """Tell if the error is within its bound."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """Give the error as a part of its bound."""
        return self.error / self.bound if self.bound else inf * self.error if self.error else 0.0

    def __str__(self) -> str:
        values = "" if self.index is None else f" at {self.index}: JAX {self.ours:.9g}, PyTorch {self.truth:.9g}"
        step = "" if self.step is None else f", after step {self.step}"
        return (
            f"{self.name}: error {self.error:.3g}, bound {self.bound:.3g}{step}{self.note and ', '}{self.note}{values}"
        )


def error(array: Any, truth: Any) -> float:
    """Compute max|array - truth| / max|truth|.

    It is 0 for two arrays of zeros, and infinite for other shapes, NaN, or zeros that are not zero.
    """
    array, truth = np.asarray(array, np.float64), np.asarray(truth, np.float64)
    if array.shape != truth.shape:
        return inf
    difference, scale = np.abs(array - truth).max(initial=0), np.abs(truth).max(initial=0)
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale and np.isfinite(difference / scale) else inf


def judge(
    ours: Any, truth: Any, pytorch: Any = None, *, bound: float = FLOAT64_BOUND, floor: float = 0.0, **place: Any
) -> Check:
    """Compare with the truth: within `bound`, or, if PyTorch's float32 is given, within twice its own error.

    floor: what such a bound is at least.  place: fields of the check that say what is compared.
    """
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    theirs = None if pytorch is None else error(pytorch, truth)
    bound = bound if theirs is None else max(FACTOR * theirs, floor)
    place |= {"error": error(ours, truth), "bound": bound, "pytorch": theirs}
    if ours.shape != truth.shape:
        return Check(note=f"shape {ours.shape}, should be {truth.shape}", **place)
    index = np.unravel_index(np.abs(ours - truth).argmax(), ours.shape)  # NaN counts as the largest
    return Check(index=[int(i) for i in index], ours=float(ours[index]), truth=float(truth[index]), **place)
