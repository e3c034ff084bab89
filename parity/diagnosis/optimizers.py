"""Why two optimizers differ: each classic mistake is made in PyTorch's, until it gives optax's updates."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import torch

from jaxcnn.files import NamedArrays
from parity.bounds import FLOAT64_BOUND, agrees
from parity.diagnosis.finding import Finding
from parity.diagnosis.optim.causes import Cause, causes, decay_causes
from parity.diagnosis.optim.changes import Changes
from parity.diagnosis.optim.rates import STEPS, Words, formula, rates
from parity.diagnosis.optim.trial import NORMS, Trial
from parity.diagnosis.optim.written import written
from parity.diagnosis.solve import solve
from parity.given import lenient
from parity.table import Table


def optimizer_findings(
    optimizer: tuple[Callable[..., Any], optax.GradientTransformation],
    parameters: NamedArrays,
    table: Table | None = None,
) -> list[Finding]:
    """Say why PyTorch's optimizer (a function from parameters to it) and optax's differ; nothing if they agree.

    parameters: arrays by PyTorch's names; a few are taken. table: how they are called in Flax and lie there.
    """
    make, ours = optimizer
    with jax.enable_x64(True), torch.enable_grad(), lenient():
        for every in (False, True):  # it may be made for all parameters, as one with a tree of labels is
            try:
                trial = Trial.of(parameters, table, every)
                return [*_findings(trial, make, trial.flax(ours))]
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as problem:
                failed = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    return [
        Finding("unknown", "optimizer", False, f"the optimizers cannot be tried apart from the network: {failed}", "")
    ]


def _findings(trial: Trial, make: Callable[..., Any], target: np.ndarray) -> Iterator[Finding]:
    scale = trial.scale(target)

    def run(changes: Changes, draws: int = DRAWS) -> np.ndarray:
        found = trial.torch(make, changes, draws)
        return found / scale[: len(found)]

    wanted, truth = target / scale, run({})
    if agrees(truth, wanted):
        return
    probe, decays = trial.probe(make)
    clip = trial.clipped(make)
    repair = written(probe, trial, decays, clip, formula(trial.rates(make, STEPS + 1)[0]))
    known = [*causes(probe, clip), *decay_causes(trial, decays, clip, truth, run)]
    rated = partial(rates, trial, make, target)
    ways = _singles(known, run, wanted, rated) or _pairs(known, run, wanted, rated)
    for codes, words in ways.items():
        for code, (text, piece) in zip(codes, words, strict=True):
            whole = "schedule(step" not in piece and repair
            yield Finding(code, "optimizer", len(ways) == 1, text, whole or piece)
    if not ways:
        text = f"PyTorch's optimizer is {type(probe).__name__}; {_how(trial, truth, wanted)}"
        yield Finding("unknown", "optimizer", False, text, repair or "")


DRAWS = len(NORMS)
Run = Callable[[Changes, int], np.ndarray]
Ways = dict[tuple[str, ...], list[Words]]  # by the codes that together bring agreement


def _singles(known: list[Cause], run: Any, wanted: np.ndarray, rated: Any) -> Ways:
    """Try each cause alone."""
    ways: Ways = {(code,): [words] for code, words in rated({}).items()}
    for cause in known:
        if (cause.code,) not in ways and (x := _fit(cause, run, wanted)) is not None:
            ways[cause.code,] = [_words(cause, x)]
    return ways


def _pairs(known: list[Cause], run: Any, wanted: np.ndarray, rated: Any) -> Ways:
    """Try each cause with another learning rate, then those without a number with those that have one."""
    ways: Ways = {}
    for one in known:
        x = _fit(one, lambda changes, draws: _along(run(changes, draws), wanted), wanted)
        found = rated(one.changes(0.0 if x is None else x)) if x is not None or not one.starts else {}
        for code, words in found.items():
            ways.setdefault((one.code, code), [_words(one, x or 0.0), words])
    seen = [run({})]
    for one in known if not ways else ():
        if one.starts[:1] not in ((), (0.0,)) or any(agrees(run(one.changes(0.0)), other) for other in seen):
            continue  # a number that is looked for, or what changes nothing
        also = one.changes(0.0)
        seen.append(run(also))
        for two in (two for two in known if two.code != one.code):
            y = _fit(two, lambda changes, draws, also=also: run(_both(also, changes), draws), wanted)  # type: ignore[misc]
            if y is not None and frozenset((one.code, two.code)) not in map(frozenset, ways):
                ways[one.code, two.code] = [_words(one, 0.0), _words(two, y)]
    return ways


def _fit(cause: Cause, run: Run, wanted: np.ndarray) -> float | None:
    """Solve for the number of a cause, by the first draw; None if it does not bring agreement in all."""

    def made(x: float, draws: int = 1) -> np.ndarray | None:
        try:
            return run(cause.changes(x), draws)
        except (ArithmeticError, RuntimeError, TypeError, ValueError):  # a beta above 1
            return None

    x = solve(made, wanted[:STEPS], cause.starts, FLOAT64_BOUND) if cause.starts else 0.0
    found = None if x is None else made(x, DRAWS)
    return x if found is not None and agrees(found, wanted) else None


def _along(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Scale updates to fit best: the learning rate does not matter."""
    wanted = wanted[: len(found)]
    return found * ((found * wanted).sum() / ((found**2).sum() or 1.0))


def _both(one: Changes, two: Changes) -> Changes:
    return {**one, **two, "group": {**one.get("group", {}), **two.get("group", {})}}


def _words(cause: Cause, x: float) -> Words:
    return cause.text.format(x=f"{x:.7g}"), cause.piece


def _how(trial: Trial, found: np.ndarray, wanted: np.ndarray) -> str:
    """Say how updates differ."""
    errors = {n: np.abs(part).max(axis=1) for n, part in trial.parts(found - wanted)}
    bad = [n for n, e in errors.items() if e.max() > FLOAT64_BOUND]
    steps = np.max([*errors.values()], axis=0)
    first = int(np.argmax(steps > FLOAT64_BOUND)) % 4 + 1
    whose = "all parameters" if len(bad) == len(errors) else ", ".join(bad[:3])
    return f"updates differ by up to {steps.max():.1e} of their size, from step {first} on, in {whose}"
