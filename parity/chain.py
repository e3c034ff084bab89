"""The chain for any pair: activations, layers alone, outputs, gradients, the user's own weights, training."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxcnn.files import NamedArrays, flat_names
from parity.bounds import Check, judge
from parity.calls import Trace
from parity.flax_trace import Site, repeat
from parity.layouts import found, usual
from parity.links import both_passes, compare
from parity.matched import Matched
from parity.matching import match_draws
from parity.pair import Pair, Pass, label
from parity.port import MODES
from parity.steps import Training, judge_draws

DRAWS = 3  # of weights, in float32: in some, rounding puts a ReLU on another side, where its gradient is another
SMALL = 1e-3  # of the largest gradient: smaller ones are judged as if of that size, since what cancels leaves rounding
SGD = (partial(torch.optim.SGD, lr=0.01, momentum=0.9), optax.sgd(0.01, 0.9))  # 0.1 makes chaos of small batches
EXACT: dict[str, Any] = {"precision": "float64"}


def evaluation(matched: Matched, precision: str) -> Iterator[Check]:
    """Compare activations, outputs and gradients; outputs with the PyTorch module's own weights too."""
    for name in matched.table.left if precision == "float64" else ():
        yield Check(precision, "weights", name, float("inf"), 0.0, note="it has no counterpart")
    for name in matched.lonely_outputs if precision == "float64" else ():
        yield Check(precision, "outputs", name, float("inf"), 0.0, note="it has no counterpart")
    pair, weights = matched.pair(precision), matched.given.random
    blind = replace(pair, names=matched.names._replace(activations=()))  # one pass by steps is enough
    seeds = range(DRAWS if precision == "float32" else 1)
    passes = [both_passes(pair if seed == 0 else blind, matched.case(seed)) for seed in seeds]
    for link in ("activations", "outputs"):
        yield from compare(pair, weights, link, *_split(matched, passes[0], link))
    yield from _best([list(_gradients(matched, pair, one)) for one in passes])
    own = _split(matched, both_passes(blind, matched.case(name="own")), "outputs")
    yield from compare(pair, weights, "outputs", *own, case="own weights")


def _split(matched: Matched, passes: list[Pass], link: str) -> tuple[NamedArrays, list[NamedArrays]]:
    """Give the arrays of a link on both sides; our own projection of the outputs says nothing new."""
    ours, *others = ({n: a for n, a in getattr(one, link).items() if matched.loss or n != "loss"} for one in passes)
    return ours, others


def _gradients(matched: Matched, pair: Pair, passes: list[Pass]) -> Iterator[Check]:
    """Compare gradients; of elements that Flax does not have, none."""
    ours, *others = (one.gradients for one in passes)
    held = matched.held
    others = [{n: np.where(held.get(n, False), 0, g) for n, g in other.items() if n in ours} for other in others]
    scale = SMALL * max((np.abs(g).max(initial=0) for g in others[0].values()), default=0)
    yield from compare(pair, matched.given.random, "gradients", ours, others, scale=scale)


def _best(runs: list[list[Check]]) -> Iterator[Check]:
    """Give the best of several draws of each tensor, against PyTorch's median error."""
    for tensor in zip(*runs, strict=True):
        best = min(tensor, key=lambda check: check.share)
        yield best if len(tensor) == 1 else replace(best, pytorch=median(check.pytorch or 0.0 for check in tensor))


def layers(matched: Matched) -> Iterator[Check]:
    """Compare each layer fed with PyTorch's own input, so that one bad layer does not hide the next."""
    theirs, seen = matched.traces[0], dict[str, list[Check]]()
    layouts, calls = {e.flax: e for e in matched.names.activations}, {f: t for t, f in matched.pairs.items()}
    paths = {flax.partition("#")[0] for flax in calls}
    blocks = {path for path in paths if any(other.startswith(f"{path}/") for other in paths)}

    def around(site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output, entry = call(*args, **kwargs), layouts.get(site.name)
        if entry is None or site.path in blocks or site.name in seen or not hasattr(output, "shape") or not args:
            return output
        truth = theirs.calls[calls[site.name]]
        if not truth.inputs:
            return output
        right = entry.carry(next(iter(truth.outputs.values())).numpy(), "flax")
        judged = lambda array: judge(array, right, **EXACT, link="layers", tensor=label(entry))  # noqa: E731
        checks = [judged(output)]
        if not checks[0].passed:  # a mistake of its own, or one before it
            x, given = next(iter(truth.inputs.values())).numpy(), np.asarray(args[0])
            axes, sizes = found(x, given, theirs.merges) or usual(x.shape, given.shape, theirs.merges)
            fed = entry._replace(axes=axes, sizes=sizes).carry(x, "flax")
            if fed.shape == given.shape:
                before = judge(given, fed, **EXACT, link="layers", tensor=f"input of {label(entry)}")
                checks = [before, judged(repeat(site.module, call, (jnp.asarray(fed), *args[1:]), kwargs))]
        seen[site.name] = checks
        return jnp.asarray(right) if right.shape == output.shape else output

    variables = matched.pair("float64").variables(matched.case().weights)
    matched.given.flax_run(matched.whole(variables), "float64", around=around, eager=True)
    for checks in seen.values():
        yield from checks


def converted(matched: Matched, variables: Any) -> Iterator[Check]:
    """Judge the user's own converted weights: each against the table's."""
    made, given = (
        flat_names(matched.table.to_flax(matched.given.state)),
        flat_names(matched.given.port.collections(variables)),
    )
    for name, array in made.items():
        place: dict[str, Any] = {**EXACT, "link": "weights", "tensor": name, "case": "yours", "bound": 1e-6}
        yield judge(given[name], array, **place) if name in given else Check(
            error=float("inf"), note="it is missing", **place)  # fmt: skip
    for name in given.keys() - matched.given.shapes.keys():
        yield Check(
            **EXACT, link="weights", tensor=name, error=float("inf"), bound=0.0, note="Flax has no such variable"
        )


def training(matched: Matched, precision: str) -> Iterator[Check]:
    """Compare dropout's masks, statistics and parameters after one step, and, in float64, after all."""
    given, keys = matched.given, [jax.random.key(7 + i) for i in range(matched.steps)]
    pair, start = matched.pair(precision, train=True), matched.case().weights
    seen_theirs = given.torch_run(start, precision, masks={})[1]
    theirs, matched.unshared = seen_theirs.draws, seen_theirs.unshared
    _, seen = pair.run(pair.variables(start), pair.flax_input(None, precision), keys[0], eager=True)
    draws = match_draws(
        theirs, seen.draws, matched.pairs, list(matched.names.activations), matched.traces[0].merges, matched.table
    )
    statistics = [n for e in matched.table.expanded if e.collection != "params" for n in e.names("torch")[0]]
    trained = Training(
        pair=replace(pair, names=matched.names._replace(draws=tuple(draws))),
        optimizer=matched.optimizer, inputs=given.inputs, tied=given.tied, held=matched.held,
        statistics=tuple(statistics), judge_loss=matched.loss is not None,
    )  # fmt: skip
    if precision == "float64":
        yield from judge_draws(theirs, seen.draws, draws)
        yield from trained.compare(start, keys)
    else:
        yield from _best([[*trained.compare(matched.case(seed).weights, keys[:1])] for seed in range(DRAWS)])


def notes(matched: Matched) -> Iterator[str]:
    """Say what was done that the user may not expect, and what could not be compared."""
    port, (theirs, ours) = matched.given.port, matched.traces
    flags = [f"{name}={not MODES[name]} in evaluation, {MODES[name]} in training"
             for name in (*port.flags, *port.settings)]  # fmt: skip
    unset = f"; not set: {', '.join(port.unset)}" if port.unset else ""
    yield f"Flax's mode: {'; '.join(flags) or port.no_flags}{unset}"
    for side, trace, known in (("PyTorch", theirs, {*matched.pairs}), ("Flax", ours, {*matched.pairs.values()})):
        if some := _lonely(trace, known):
            more = f" and {len(some) - 3} more" if len(some) > 3 else ""
            yield f"modules of {side} without a counterpart: {', '.join(some[:3])}{more}"
    for entry in matched.names.outputs:
        if (axes := entry.axes.split(" -> "))[0] != axes[1]:
            yield f"{entry.torch}: PyTorch's axes {axes[0]} are {axes[1]} in Flax"
    for path in dict.fromkeys(matched.unshared):
        yield f"PyTorch's {path or 'module'} draws random numbers that are no dropout's: Flax cannot be given the same"
    if frozen := matched.given.modes:
        yield f"PyTorch's {', '.join(frozen[:3])} came in another mode than the rest; all was evaluated and trained"
    for name in matched.held:
        yield f"{name}: Flax has its sum with another; it was added to that, and not trained"


def _lonely(trace: Trace, matched: set[str]) -> list[str]:
    """List the modules of which no call is matched; of a block or a cell that is one, not what is inside."""
    paths = dict.fromkeys(call.path for call in trace.calls.values())
    known = {trace.calls[name].path for name in matched}
    alone = [p for p in paths if p not in known and not any(k.startswith(f"{p}/") for k in known)]
    return [p for p in alone if p.rpartition("/")[0] not in alone]
