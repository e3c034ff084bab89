"""The diagnosis of a pair that differs: all findings, in the order of the chain."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from parity.bounds import Check
from parity.diagnosis.finding import Finding
from parity.diagnosis.initial import initial_findings
from parity.diagnosis.losses import loss_findings
from parity.diagnosis.modes import always_on, draw_findings, precision_findings
from parity.diagnosis.optimizers import optimizer_findings
from parity.diagnosis.search import Search
from parity.diagnosis.statistics import norms, statistic_findings
from parity.diagnosis.weights import STRANGE, table_findings, weight_findings
from parity.fed import Feeding, feed
from parity.initial import Drawn
from parity.matched import Matched
from parity.pair import named

NETWORK = ("layers", "activations", "outputs", "gradients")


def diagnose(
    matched: Matched,
    feeding: Feeding | None,
    checks: Sequence[Check],
    variables: Any,
    initial: Any,
    drawn: list[Drawn] | None,
    say: Callable[[str], None],
) -> tuple[Finding, ...]:
    """Say why a pair differs. Nothing if it does not."""
    failed = [c for c in checks if not c.passed]
    links = {c.link for c in failed if c.precision == "float64"}
    if matched.untied:
        return tuple(untied_findings(matched))
    found: list[Finding] = list(always_on(matched.drawn_in_evaluation, matched.pairs))
    if feeding is not None and links & {*NETWORK, "weights"}:
        with jax.enable_x64(True):
            found += table_findings(matched) or network_findings(matched, feeding, failed, say)
            weights = weight_findings(matched, variables) if variables is not None else []
            absent = any(one.code == "layer-missing" for one in found)  # then its weights are not a separate mistake
            found += [one for one in weights if not (absent and one.text == STRANGE)]
    if matched.loss and any(c.tensor == "loss" for c in failed):
        found += loss_findings(matched.loss, *same_output(matched))
    if "masks" in links:
        theirs, seen, draws = matched.trained.draws
        found += draw_findings(theirs, seen, draws, matched.given.port.framework)
    if "statistics" in links:
        shown = matched.trained
        statistics = statistic_findings(norms(matched), shown.start, shown.theirs[0], shown.ours)
        found += [f for f in statistics if f.code != "unknown" or not found]
    if links & {"step", "trajectory"}:
        parameters = {name: matched.given.random[name] for name in matched.pair("float64").trained}
        found += optimizer_findings(matched.optimizer, parameters, matched.table)
    if drawn is not None and "initial" in links:
        found += initial_findings(initial, matched.given, matched.table, drawn)
    found += precision_findings(checks)
    if failed and not found:
        first = failed[0]
        found.append(Finding("unknown", first.tensor, False, f"{first.link} differ, and nothing before: {first}", ""))
    return tuple(dict.fromkeys(found))


def untied_findings(matched: Matched) -> Iterator[Finding]:
    """Say which layers of PyTorch share an array that Flax has several of."""
    for name, ours in matched.untied.items():
        text = f"PyTorch's layers share it, Flax has an array for each: {', '.join(ours)}"
        yield Finding("layer-twice", name, True, text, "call one module twice; embed.attend(x) for a tied head")


def network_findings(
    matched: Matched, feeding: Feeding, failed: Sequence[Check], say: Callable[[str], None]
) -> list[Finding]:
    """Say why the network computes something else: with random weights, or others if these do not show it."""
    found = Search(matched, feeding, say).run()
    for case in dict.fromkeys(c.case for c in failed if c.link == "outputs" and c.case and c.tensor != "loss"):
        if not found and case in matched.cases:
            other = matched.on(matched.cases[case])
            found = Search(other, feed(other), say).run()
    return found


def same_output(matched: Matched) -> tuple[Any, Any]:
    """Give PyTorch's output, and the same in Flax's form."""
    theirs, ours = matched.outputs
    arrays, places = named(theirs, "output"), named(ours, "output")
    right = {e.flax: e.carry(arrays[e.torch].detach().numpy(), "flax") for e in matched.names.outputs}
    leaves = [right.get(name, np.asarray(leaf)) for name, leaf in places.items()]
    return theirs, jax.tree.unflatten(jax.tree.structure(ours), leaves)
