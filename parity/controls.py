"""Negative controls for a pair of the user's: classic mistakes made in the port on purpose, which must be noticed.

They are made in float64, on Flax's side of a pair that agrees, and judged by the links of the chain. Those of outputs,
masks and statistics run Flax step by step, which takes a moment; those of gradients and steps compile for seconds each.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import jax
import numpy as np
import torch

from jaxcnn.errors import UserError
from parity import chain
from parity.bounds import Check, name_of
from parity.fitting import controls
from parity.links import compare
from parity.matched import Matched
from parity.mistakes import Control, Mistake, Tried
from parity.pair import Case, Pass, flax_pass, label, named, torch_pass
from parity.steps import judge_draws


def run_controls(matched: Matched, inside: Collection[str] = ()) -> tuple[Tried, ...]:
    """Make each mistake that fits a pair, which agrees without it but for tensors inside, and say what noticed it."""
    with jax.enable_x64(True), torch.enable_grad():
        truth = torch_pass(matched.pair("float64"), matched.case(), torch.float64, {})
        return tuple(tried(matched, truth, control, inside) for control in controls(matched))


def tried(matched: Matched, truth: Pass, control: Control, inside: Collection[str] = ()) -> Tried:
    """Try a control: it passes if the right comparison notices it first."""
    link, tensor, case = control.first or ("", "", "")
    expected = name_of("float64", link, tensor, case).rstrip("/")
    try:
        failed = (c for c in judged(matched, truth, link, control.mistake) if not c.passed)
        caught = next((c for c in failed if c.link != "activations" or c.tensor not in inside), None)
    except UserError as problem:
        return Tried(control.name, expected, str(problem), False)
    if caught is None:
        return Tried(control.name, expected, None, False)
    later = link == "activations" and bool(inside)  # the right tensor may be one of these
    passed = later or (caught.link == link and tensor in ("", caught.tensor))
    return Tried(control.name, expected, caught.name, passed)


def judged(matched: Matched, truth: Pass, link: str, mistake: Mistake) -> Iterator[Check]:
    """Judge a pair with a mistake, in the part of the chain that contains a link."""
    if link in ("activations", "outputs"):
        return _forward(matched, truth, mistake)
    if link == "gradients":
        pair = mistake(replace(matched.pair("float64"), names=matched.names._replace(activations=())))
        return chain.gradients(matched, pair, [flax_pass(pair, matched.case()), truth])
    return _drawn(matched, mistake) if link in ("masks", "statistics") else _trained(matched, mistake)


def _forward(matched: Matched, truth: Pass, mistake: Mistake) -> Iterator[Check]:
    """Judge activations and outputs in evaluation: Flax runs step by step."""
    pair, weights = mistake(matched.pair("float64")), matched.case().weights
    (output, _), trace = pair.run(pair.variables(weights), pair.flax_input(None, "float64"), None, eager=True)
    seen, outputs = trace.outputs(), named(output, pair.output)
    ours = {label(e): np.asarray(seen[e.flax]) for e in matched.names.activations}
    yield from compare(pair, weights, "activations", ours, [truth.activations])
    ours = {label(e): np.asarray(outputs[e.flax]) for e in matched.names.outputs}
    theirs = {name: array for name, array in truth.outputs.items() if name in ours}
    if matched.loss:
        ours, theirs = {**ours, "loss": np.asarray(pair.flax_loss(output, None, None))}, truth.outputs
    yield from compare(pair, weights, "outputs", ours, [theirs])


def _drawn(matched: Matched, mistake: Mistake) -> Iterator[Check]:
    """Judge dropout and statistics in training: Flax runs step by step."""
    trained, start, keys, states, *_ = matched.trained
    pair = mistake(matched.pair("float64", train=True))
    theirs, seen, draws, after = chain.drawn(matched, pair, start, keys[0])
    yield from judge_draws(theirs.draws, seen.draws, draws)
    truth = {name: states[0][name] for name in trained.statistics}
    yield from compare(pair, start, "statistics", pair.table.to_torch(after), [truth])


def _trained(matched: Matched, mistake: Mistake) -> Iterator[Check]:
    """Judge the first step of training, or the first two."""
    trained, start, keys, states, *_ = matched.trained
    pair = mistake(replace(trained.pair, optimizers={"": ({}, trained.optimizer[1])}))
    wrong = replace(trained, pair=pair, optimizer=(trained.optimizer[0], pair.optimizers[""][1]))
    batches = [Case("", start, trained.inputs, key=key) for key in keys[: len(states)]]
    ours = list(wrong.flax_states(start, batches, trained.rounding_only(batches[0])))
    yield from wrong.compare(start, [ours, states])
