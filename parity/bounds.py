"""What counts as equal: errors, their bounds, and a comparison as a value."""

from dataclasses import dataclass
from math import ceil, inf, log2, sqrt
from typing import Any

import numpy as np

FLOAT64_BOUND = 1e-12
EPSILON = float(np.finfo(np.float32).eps)
LEAST = 4  # units in the last place that a network is allowed
FACTOR = 2.0  # JAX may be off by this many times PyTorch's own error
LEFT_OUT = 0.5  # of the images of a case, or the stretches of training: those that float32 decides unlike float64

LINKS = ("weights", "layers", "activations", "outputs", "gradients", "masks", "statistics", "step", "trajectory",
         "initial", "evaluation")  # fmt: skip


def float32_floor(weights: dict[str, np.ndarray]) -> float:
    """Give the float32 error that a network is allowed, by its depth and its longest sum.

    PyTorch's own error is a single random sample, and can be 0. A sum of K products, added one by one, is off by
    about sqrt(K) / 2 units in the last place (Higham and Mary 2019). Both frameworks add in blocks and lanes, which is
    like adding in pairs: sqrt(log2 K) / 2 units. Each layer is allowed as many: 2 for each of four, if K is 8192. At
    least LEAST units, for the functions and products between: XLA's tanh times a dense layer was off by 2.
    """
    fans = [array[0].size for array in weights.values() if array.ndim > 1]
    return EPSILON * max(LEAST, len(fans) * ceil(sqrt(log2(max(fans, default=2))) / 2))


def name_of(precision: str, link: str, tensor: str, case: str) -> str:
    """Name a comparison: `float64/gradients/conv1.weight@ties`."""
    return f"{precision}/{link}/{tensor}{case and '@'}{case}"


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, its error and its bound."""

    precision: str
    link: str
    tensor: str
    error: float  # max|a-b| / max|b|, or one of another kind; never NaN
    bound: float
    case: str = ""
    step: int | None = None  # of training, after which it was compared
    pytorch: float | None = None  # PyTorch's own error against the truth, if the bound is made of it
    index: list[int] | None = None  # of the tensor's largest error
    ours: float = 0.0  # JAX's value there
    truth: float = 0.0  # PyTorch's
    note: str = ""
    points: tuple[tuple[int, float, float], ...] = ()  # step, error and PyTorch's own, of each comparison up to `step`

    @property
    def name(self) -> str:
        """Name the comparison."""
        return name_of(self.precision, self.link, self.tensor, self.case)

    @property
    def passed(self) -> bool:
        """Tell if the error is within its bound."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """Give the error as a fraction of its bound."""
        return self.error / self.bound if self.bound else inf * self.error if self.error else 0.0

    def __str__(self) -> str:
        values = "" if self.index is None else f" at {self.index}: JAX {self.ours:.9g}, PyTorch {self.truth:.9g}"
        step = "" if self.step is None else f", after step {self.step}"
        note = self.note and f", {self.note}"
        return f"{self.name}: error {self.error:.3g}, bound {self.bound:.3g}{step}{note}{values}"


def error(array: Any, truth: Any, least: float = 0.0) -> float:
    """Compute max|array - truth| / max|truth|: infinite if shapes differ, for NaN, and for a truth of zeros only.

    least: the smallest size that the truth is taken to have.
    """
    array, truth = np.asarray(array, np.float64), np.asarray(truth, np.float64)
    if array.shape != truth.shape:
        return inf
    difference, scale = np.abs(array - truth).max(initial=0), max(np.abs(truth).max(initial=0), least)
    if difference == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # of what is infinite
        share = difference / scale if scale else inf
    return float(share) if np.isfinite(share) else inf


def agrees(array: Any, truth: Any) -> bool:
    """Tell if arrays are the same to float64's rounding."""
    return error(array, truth) <= FLOAT64_BOUND


def judge(
    ours: Any, truth: Any, pytorch: Any = None, *, bound: float = FLOAT64_BOUND, floor: float = 0.0, scale: float = 0.0,
    **place: Any,
) -> Check:  # fmt: skip
    """Compare with the truth: within `bound`, or, given PyTorch's float32, within twice its own error or `floor`."""
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    if pytorch is not None:
        place["pytorch"] = error(pytorch, truth, scale)
        bound = max(FACTOR * place["pytorch"], floor)
    place |= {"error": error(ours, truth, scale), "bound": bound}
    if ours.shape != truth.shape:
        return Check(note=f"shape {ours.shape}, should be {truth.shape}", **place)
    index = np.unravel_index(np.abs(ours - truth).argmax(), ours.shape)  # NaN counts as the largest
    if np.isnan(ours[index]) and np.isnan(truth[index]):
        place["note"] = "not a number on both sides"
    return Check(index=[int(i) for i in index], ours=float(ours[index]), truth=float(truth[index]), **place)
