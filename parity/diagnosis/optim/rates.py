"""Learning rates that explain a difference: of all steps, of single steps, of single parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parity.bounds import FLOAT64_BOUND
from parity.diagnosis.optim.changes import Changes
from parity.diagnosis.optim.trial import NORMS, Trial
from parity.diagnosis.solve import shortest

Words = tuple[str, str]  # what differs, and the piece of optax's call that changes
SAME = 1e-10  # two rates
STEPS = len(NORMS[0])


def rates(trial: Trial, make: Callable[..., Any], target: np.ndarray, changes: Changes) -> dict[str, Words]:
    """Find the learning rates with which PyTorch's updates are Flax's: a code with words, two if they look the same."""
    parts = _parts(trial, trial.torch(make, {**changes, "rate": 1.0}), target)
    if parts is None:
        return {}
    if not all(_same(part, parts[0]) for part in parts):
        return _apart(trial, parts)
    theirs, first = trial.rates(make, STEPS + 1)
    ours, found = parts[0] * first, dict[str, Words]()
    if _same(ours, theirs[:STEPS]):
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        constant = _same(share := ours / theirs[:STEPS], share[:1])
    if constant:
        at = np.argmax(theirs[:STEPS])
        text = f"Flax uses learning rate {_number(ours[at])}, PyTorch {_number(theirs[at])}{_when(theirs)}"
        found["learning-rate"] = text, f"learning_rate={_number(theirs[at])}"
    if not constant or (shifted(ours, theirs) and not _same(theirs, theirs[:1])):
        found["schedule"] = _schedule(ours, theirs)
    return found


def _parts(trial: Trial, steady: np.ndarray, target: np.ndarray) -> list[np.ndarray] | None:
    """Give, for each parameter, Flax's learning rate in each step, in parts of PyTorch's; None if it is none."""
    found, scale = [], trial.scale(target)
    pieces = [trial.parts(rows) for rows in (steady, target, scale)]
    for (_, one), (_, two), (_, size) in zip(*pieces, strict=True):
        part = (one * two).sum(axis=1) / np.maximum((one**2).sum(axis=1), 1e-300)
        if np.abs((part[:, None] * one - two) / size).max() > FLOAT64_BOUND:
            return None
        drawn = part.reshape(-1, STEPS)
        if not all(_same(other, drawn[0]) for other in drawn):
            return None  # it depends on the gradients
        found.append(drawn[0])
    return found


def _apart(trial: Trial, parts: list[np.ndarray]) -> dict[str, Words]:
    """Say which parameters have another learning rate."""
    if not all(_same(part, part[:1]) for part in parts):
        return {}
    shares = {name: float(part[0]) for name, part in zip(trial.start, parts, strict=True)}
    text = ", ".join(f"{_number(share)} times PyTorch's for {name}" for name, share in [*shares.items()][:4])
    return {"learning-rate": (f"Flax's learning rate is {text}", "optax.multi_transform(...)")}


def shifted(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say if Flax's schedule is a step early, or late."""
    early, late = _same(ours, theirs[1:]), _same(ours[1:], theirs[: STEPS - 1])
    return "early" if early else "late" if late else ""


def _schedule(ours: np.ndarray, theirs: np.ndarray) -> Words:
    """Say how two schedules differ."""
    text = f"Flax's learning rate is {_listed(ours)}, PyTorch's {_listed(theirs[:STEPS])}"
    if _same(ours, ours[:1]):
        return f"{text}: Flax has no schedule", formula(theirs)
    if _same(theirs, theirs[:1]):
        return f"{text}: PyTorch has no schedule", formula(theirs)
    if when := shifted(ours, theirs):
        return f"{text}: Flax's schedule is a step {when}", f"lambda step: schedule(step {'-+'[when == 'late']} 1)"
    return text, formula(theirs)


def formula(theirs: np.ndarray) -> str:
    """Write a schedule that gives these learning rates, or their number if there is none."""
    steps = np.diff(theirs)
    if _same(steps, np.zeros(1)):
        return _number(theirs[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = theirs[1:] / theirs[:-1]
    if _same(ratio, ratio[:1]):
        return f"lambda step: {_number(theirs[0])} * {_number(ratio[0])} ** step"
    if _same(steps, steps[:1]):
        return f"lambda step: {_number(theirs[0])} + {_number(steps[0])} * step"
    return "schedule"


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    return bool(np.allclose(one, two, rtol=SAME, atol=1e-15))


def _number(x: Any) -> str:
    x = float(x)
    return f"{shortest(x, lambda short: abs(short - x) <= SAME * abs(x)):.9g}"


def _listed(some: Sequence[Any] | np.ndarray) -> str:
    return ", ".join(map(_number, some))


def _when(theirs: np.ndarray) -> str:
    return "" if _same(theirs, theirs[:1]) else " (where the schedule is highest)"
