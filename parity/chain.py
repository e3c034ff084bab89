"""The chain: each link compares every tensor by its name, JAX against PyTorch, in the order in which they are computed.

In float64 the two are held to a bound. In float32 each is judged against PyTorch's float64, which the float64 half has
found to be JAX's too, and JAX may be off by twice as much as PyTorch is.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import tree_utils

from jaxcnn import train
from jaxcnn.model import Params
from parity.cases import DROPOUTS, SEED, STEP, Case, cases, dropout_masks
from parity.compare import Check
from parity.passes import LossFunction, Pass, as_state_dict, jax_pass, loss_function, otherwise, torch_pass
from parity.replay import single_steps
from parity.subject import Subject
from parity.trajectory import LEFT_OUT, Drift, snapshot, trajectory

SIGMAS = 5.0  # of the number of kept elements
# A large rate, so that the new parameters show what the optimizer does in more than their last digits.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.5},
    "momentum": {"learning_rate": 0.5, "momentum": 0.9},
    "nesterov": {"learning_rate": 0.5, "momentum": 0.9, "nesterov": True},
    "decay": {"learning_rate": 0.5, "momentum": 0.9, "weight_decay": 0.1},
}


def checks(subject: Subject, drift: Drift) -> Iterator[Check]:
    """All comparisons in order of execution, computed as they are asked for; `drift` is filled by the trajectory."""
    function = jax.jit(loss_function(subject.network))
    every = cases(subject.params, subject.data.train, subject.size.images)
    inputs = [case for case in every if case.name in subject.size.cases]
    passed = functools.cache(lambda number: _passes(subject, function, inputs[number], inputs[number].real))
    for link in ("activations", "outputs"):
        for number, case in enumerate(inputs):
            yield from _compared(subject, link, case, passed(number))
            if link == "activations":
                yield from _mask_rates(subject, case)
    for number, case in enumerate(inputs):
        passes = passed(number)
        real = case.real & ~_left_out(passes)
        yield subject.check(f"gradients/left_out@{case.name}", 1 - real.sum() / case.real.sum(), LEFT_OUT)
        if real.any() and (real != case.real).any():
            passes = _passes(subject, function, case, real)
        yield from _compared(subject, "gradients", case, passes)
        if case.key is not None:
            training = case._replace(real=real)
    yield from steps(subject, training)
    yield from trajectory(subject, drift)


def _passes(subject: Subject, function: LossFunction, case: Case, real: np.ndarray) -> list[Pass]:
    """A case in JAX, then in PyTorch."""
    theirs = [torch_pass(case, real, dtype) for dtype in subject.dtypes]
    return [jax_pass(subject.network, function, case, real), *theirs]


def _compared(subject: Subject, link: str, case: Case, passes: list[Pass]) -> Iterator[Check]:
    ours, *others = (getattr(one, link) for one in passes)
    for name in others[0]:
        yield subject.judge(f"{link}/{name}@{case.name}", ours[name], [other[name] for other in others])


def _left_out(passes: list[Pass]) -> np.ndarray:
    """Images whose gradient is another function's: rounding put a ReLU or a maximum on another side. [n]."""
    ours, truth, *own = (one.activations for one in passes)
    return np.any([otherwise(one, truth) > 0 for one in (ours, *own)], axis=0)


def _mask_rates(subject: Subject, case: Case) -> Iterator[Check]:
    """That the masks, which both sides share, keep as many elements as they should."""
    masks = {} if case.key is None else dropout_masks(subject.network, case.key, len(case.images))
    for name, mask in masks.items():
        rate = DROPOUTS[name][1]
        bound = SIGMAS * math.sqrt(rate * (1 - rate) / mask.size)
        yield subject.check(f"activations/{name}.mask@{case.name}", abs(float(mask.mean()) - (1 - rate)), bound)


def steps(subject: Subject, case: Case) -> Iterator[Check]:
    """One step of each kind of SGD, from momentum buffers that are not zero, with dropout and a partial batch."""
    rng = np.random.default_rng(SEED)
    buffers = subject.cast(jax.tree.map(lambda p: rng.normal(0, 0.01, p.shape).astype(np.float32), case.params))
    batch = train.Batch(*(jnp.asarray(array) for array in (case.images, case.labels, case.real)))

    @jax.jit  # all at once: the compiler sees that they share their gradient
    def taken(params: Params, buffers: Params, batch: train.Batch) -> dict[str, train.TrainState]:
        after = {}
        for kind, options in OPTIMIZERS.items():
            optimizer = train.sgd(**options)
            state = train.with_params(optimizer, params)._replace(step=jnp.uint32(STEP))
            if "momentum" in options:
                state = state._replace(opt_state=tree_utils.tree_set(state.opt_state, trace=buffers))
            after[kind] = train.train_step(subject.network, optimizer, state, batch, SEED)
        return after

    ours = {kind: snapshot(state) for kind, state in taken(subject.cast(case.params), buffers, batch).items()}
    others = [single_steps(case, as_state_dict(buffers), OPTIMIZERS, dtype) for dtype in subject.dtypes]
    for kind in OPTIMIZERS:
        for name in others[0][kind]:
            yield subject.judge(f"step/{name}@{kind}", ours[kind][name], [other[kind][name] for other in others])
