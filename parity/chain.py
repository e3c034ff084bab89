"""The chain for any pair: activations, outputs, gradients, the user's own weights, training."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

import jax
import numpy as np
import optax
import torch

from jaxcnn.files import NamedArrays, flat_names
from parity.bounds import Check, judge
from parity.calls import Trace
from parity.links import both_passes, compare
from parity.matched import Matched, Trained
from parity.matching import match_draws
from parity.pair import Pair, Pass
from parity.port import MODES
from parity.rules import likeness
from parity.steps import Training, judge_draws
from parity.table import Entry, Table

DRAWS = 3  # of weights, in float32: in some, rounding flips the sign of a ReLU's input, which changes its gradient
SMALL = 1e-3  # of the largest gradient: smaller ones are judged as if of that size, since cancellation leaves rounding
CROSSED = 0.5  # by how much more two names are each other's: 0.76 for gate_proj and up_proj; norm1 and LayerNorm_0, 0.2
SGD = (partial(torch.optim.SGD, lr=0.01, momentum=0.9), optax.sgd(0.01, 0.9))  # 0.1 makes chaos of small batches
LARGE_BOUND = 1e-9  # with large weights: PyTorch's softplus is a straight line from 20 on, Flax's 2e-9 off it
EXACT: dict[str, Any] = {"precision": "float64"}


def evaluation(matched: Matched, precision: str) -> Iterator[Check]:
    """Compare activations, outputs and gradients; outputs with the PyTorch module's own weights too."""
    for name in matched.table.left if precision == "float64" else ():
        yield Check(precision, "weights", name, float("inf"), 0.0, note="it has no counterpart")
    for name in matched.drawn_in_evaluation if precision == "float64" else ():
        yield Check(precision, "masks", f"{name} of Flax", float("inf"), 0.0, note="it drops out in evaluation")
    for name in matched.lonely_outputs if precision == "float64" else ():
        yield Check(precision, "outputs", name, float("inf"), 0.0, note="it has no counterpart")
    pair, weights = matched.pair(precision), matched.given.random
    blind = replace(pair, names=matched.names._replace(activations=()))  # one pass by steps is enough
    seeds = range(DRAWS if precision == "float32" else 1)
    passes = [both_passes(pair if seed == 0 else blind, matched.case(seed)) for seed in seeds]
    for link in ("activations", "outputs"):
        yield from compare(pair, weights, link, *_split(matched, passes[0], link))
    yield from _best([list(gradients(matched, pair, one)) for one in passes])
    for name in matched.cases:
        other = _split(matched, both_passes(blind, matched.case(name=name)), "outputs")
        bound: dict[str, Any] = {"bound": LARGE_BOUND} if name == "large weights" else {}
        yield from compare(pair, weights, "outputs", *other, case=name, **bound)


def untied(matched: Matched) -> Iterator[Check]:
    """Name the arrays that PyTorch has once and Flax several times: no link can compare them."""
    for name, ours in matched.untied.items():
        note = f"Flax has {len(ours)} arrays for it: {', '.join(ours)}"
        yield Check("float64", "weights", name, float("inf"), 0.0, note=note)


def _split(matched: Matched, passes: list[Pass], link: str) -> tuple[NamedArrays, list[NamedArrays]]:
    """Give the arrays of a link on both sides; our own projection of the outputs adds nothing new."""
    ours, *others = ({n: a for n, a in getattr(one, link).items() if matched.loss or n != "loss"} for one in passes)
    return ours, others


def gradients(matched: Matched, pair: Pair, passes: list[Pass]) -> Iterator[Check]:
    """Compare gradients, except those of elements that Flax does not have."""
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


def converted(matched: Matched, variables: Any) -> Iterator[Check]:
    """Judge the user's own converted weights: each against the table's, unless that is in doubt."""
    made, given = (
        flat_names(matched.table.to_flax(matched.given.state)),
        flat_names(matched.given.port.collections(variables)),
    )
    for name, array in made.items():
        if name in given and matched.other_layout(name, given[name]):
            continue
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
    theirs, seen, draws, _ = drawn(matched, pair, start, keys[0])
    matched.unshared = theirs.unshared
    statistics = [n for e in matched.table.expanded if e.collection != "params" for n in e.names("torch")[0]]
    trained = Training(
        pair=replace(pair, names=matched.names._replace(draws=tuple(draws))),
        optimizer=matched.optimizer, inputs=given.inputs, tied=given.tied, held=matched.held,
        statistics=tuple(statistics), judge_loss=matched.loss is not None,
    )  # fmt: skip
    if precision == "float64":
        yield from judge_draws(theirs.draws, seen.draws, draws)
        sides = trained.states(start, keys)
        shown = theirs.draws, seen, draws
        matched.trained = Trained(trained, start, keys, sides[1][:2], sides[0][0], shown)
        yield from trained.compare(start, sides)
    else:
        starts = [matched.case(seed).weights for seed in range(DRAWS)]
        yield from _best([[*trained.compare(start, trained.states(start, keys[:1]))] for start in starts])


def drawn(matched: Matched, pair: Pair, start: NamedArrays, key: Any) -> tuple[Trace, Trace, list[Entry], Any]:
    """Run both sides in training; return both traces, which mask is which, and Flax's variables afterwards."""
    theirs = matched.given.torch_run(start, pair.precision, masks={})[1]
    (_, after), seen = pair.run(pair.variables(start), pair.flax_input(None, pair.precision), key, eager=True)
    known, merges = list(matched.names.activations), matched.traces[0].merges
    return theirs, seen, match_draws(theirs.draws, seen.draws, matched.pairs, known, merges, matched.table), after


def notes(matched: Matched) -> Iterator[str]:
    """List what was done that the user may not expect, and what could not be compared."""
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
        if entry.torch != entry.flax:
            yield f"PyTorch's {entry.torch} was compared with Flax's {entry.flax}"
        if (axes := entry.axes.split(" -> "))[0] != axes[1]:
            yield f"{entry.torch}: PyTorch's axes {axes[0]} are {axes[1]} in Flax"
    for path in dict.fromkeys(matched.unshared):
        yield f"PyTorch's {path or 'module'} draws random numbers that are no dropout's: Flax cannot be given the same"
    fixed = [name for name, p in matched.given.torch_module.named_parameters() if not p.requires_grad]
    if fixed:
        more = f" and {len(fixed) - 3} more" if len(fixed) > 3 else ""
        yield f"PyTorch does not train {', '.join(fixed[:3])}{more}: their gradients and steps were not compared"
    if frozen := matched.given.modes:
        yield f"PyTorch's {', '.join(frozen[:3])} came in another mode than the rest; all was evaluated and trained"
    for name in matched.held:
        yield f"{name}: Flax has its sum with another; it was added to that, and not trained"
    if exchanged := [*crossed(matched.table)]:
        (layer, other), *others = exchanged
        such = f" (one of {len(exchanged)} such pairs)" if others else ""
        yield f"{layer} is {other} by value, not by name, and the other way round{such}: do not carry weights by name"


def crossed(table: Table) -> Iterator[tuple[str, str]]:
    """List pairs of layers, PyTorch's and Flax's, of which two in one block seem to have exchanged names."""
    blocks = defaultdict[Any, dict[str, str]](dict)
    for entry in table.expanded:
        (theirs, *_), (ours, *_) = (entry.names(side)[0] for side in ("torch", "flax"))
        block, _, name = theirs.rpartition(".")[0].rpartition(".")
        place, _, other = ours.rpartition("/")[0].rpartition("/")
        blocks[block, place][name] = other
    for (block, place), layers in blocks.items():
        for (a, x), (b, y) in combinations(layers.items(), 2):
            if likeness(a, y) + likeness(b, x) > likeness(a, x) + likeness(b, y) + CROSSED:
                yield f"{block}.{a}".lstrip("."), f"{place}/{x}".lstrip("/")


def _lonely(trace: Trace, matched: set[str]) -> list[str]:
    """List the modules of which no call is matched; for a block or a cell, not the modules inside."""
    paths = dict.fromkeys(call.path for call in trace.calls.values())
    known = {trace.calls[name].path for name in matched}
    alone = [p for p in paths if p not in known and not any(k.startswith(f"{p}/") for k in known)]
    return [p for p in alone if p.rpartition("/")[0] not in alone]
