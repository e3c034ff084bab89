"""The links of training: where it starts, where 200 steps lead, and what comes out is evaluated."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from optax import tree_utils

from jaxcnn import train
from jaxcnn.model import Params, initial_params
from jaxcnn.train import TrainState
from parity import torch_model
from parity.cases import SEED
from parity.compare import FACTOR, FLOOR, TRAJECTORY_BOUND, Check, kolmogorov_smirnov
from parity.passes import Arrays, as_state_dict
from parity.replay import Replay, schedule
from parity.subject import Subject
from parity.torch_model import pixels, twin

LEARNING_RATE, MOMENTUM = 0.001, 0.9  # the tutorial's
SEEDS, VALUES = 32, 1000  # how many draws, and how many values of each array
LEFT_OUT = 0.5
LARGEST = 1e9  # that is drawn

Drift = list[dict[str, float]]


def snapshot(state: TrainState) -> Arrays:
    """Copies of the parameters, of the momentum buffers where there are any, and the summed loss."""
    buffers: Any = tree_utils.tree_get(state.opt_state, "trace")
    named = {} if buffers is None else {f"{n}.momentum": a for n, a in as_state_dict(buffers).items()}
    return {**as_state_dict(state.params), **named, "loss": np.array(state.loss_sum)}


def initial(subject: Subject) -> Iterator[Check]:
    """That training starts from PyTorch's distribution: both frameworks' own draws."""
    network = subject.network
    ours = [as_state_dict(initial_params(network, jax.random.key(seed))) for seed in range(SEEDS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        widths = network.channels, network.hidden, network.classes
        theirs = [torch_model.CNN(*widths).state_dict() for _ in range(SEEDS)]
    for name in ours[0]:
        samples = [np.concatenate([np.ravel(one[name])[:VALUES] for one in many]) for many in (ours, theirs)]
        yield subject.check(f"trajectory/{name}.initial", *kolmogorov_smirnov(*samples))


def stretches(subject: Subject) -> list[tuple[int, int]]:
    """First and last steps of the dispatches: none goes beyond an epoch's end."""
    size = subject.size
    per_epoch = -(-size.subset // size.batch)
    ends = {*range(size.stretch, size.steps, size.stretch), *range(per_epoch, size.steps, per_epoch), size.steps}
    return list(zip([0, *sorted(ends)], sorted(ends), strict=False))


def trajectory(subject: Subject, drift: Drift) -> Iterator[Check]:
    """The project's own jitted training, dispatch after dispatch, replayed in PyTorch; and the evaluation of its end.

    In float64 PyTorch replays it from the start. In float32 that would be to compare chaos with chaos: the first ReLU
    that rounding puts on another side multiplies the difference by a thousand. There PyTorch replays every
    second stretch from the state that JAX begins it with, and the median over these is judged.
    """
    size, optimizer, network = subject.size, train.sgd(LEARNING_RATE, MOMENTUM), subject.network
    images, labels = subject.data.train.images[: size.subset], subject.data.train.labels[: size.subset]
    data = train.Arrays(jnp.asarray(images), jnp.asarray(labels))
    state = train.with_params(optimizer, subject.cast(subject.params))
    plan = schedule(network, images, labels, size.batch)
    replays = [Replay(subject.params, plan, LEARNING_RATE, MOMENTUM, dtype) for dtype in subject.dtypes]
    found: list[dict[str, Check]] = []
    for number, (start, end) in enumerate(stretches(subject)):
        before, count = snapshot(state), jnp.int32(end - start)
        state = train.train_steps(network, optimizer, state, data, jnp.uint32(SEED), count, batch_size=size.batch)
        if subject.precision == "float32":
            if number % 2:
                continue
            for replay in replays:
                replay.load(before)
        ours, others = snapshot(state), [replay.run(start, end) for replay in replays]
        found.append({
            name: subject.judge(f"trajectory/{name}", ours[name], [other[name] for other in others],
                                bound=TRAJECTORY_BOUND, where=f"after step {end}")
            for name in others[0]
        })  # fmt: skip
        largest = [max(getattr(check, of) or 0.0 for check in found[-1].values()) for of in ("error", "pytorch")]
        drift.append({"step": end, "error": min(largest[0], LARGEST), "pytorch": min(largest[1], LARGEST)})
    if subject.precision == "float32":
        yield from _typical(subject, found)
    else:
        yield from (max((one[name] for one in found), key=lambda check: check.error) for name in found[0])
    yield from evaluation(subject, jax.tree.map(np.array, state.params))


def _typical(subject: Subject, found: list[dict[str, Check]]) -> Iterator[Check]:
    """Each tensor's median over the stretches; those beyond the bound, where a decision fell otherwise, are counted."""
    beyond = [False] * len(found)
    for name in found[0]:
        checks = [one[name] for one in found]
        own = median(check.pytorch or 0.0 for check in checks)
        bound = max(FACTOR * own, FLOOR)
        beyond = [before or check.error > bound for before, check in zip(beyond, checks, strict=True)]
        middle = sorted(checks, key=lambda check: check.error)[len(checks) // 2]
        yield Check(middle.name, middle.error, bound, own, middle.index, middle.ours, middle.truth, middle.where)
    yield subject.check("trajectory/left_out", sum(beyond) / len(beyond), LEFT_OUT)


def evaluation(subject: Subject, params: Params) -> Iterator[Check]:
    """Logits, loss, predictions and accuracy of test images; their number divides by no batch."""
    images, labels = (array[: subject.size.evaluated] for array in (subject.data.test.images, subject.data.test.labels))
    found = train.predict_logits(subject.network, subject.cast(params), jnp.asarray(images), batch_size=32)
    loss, accuracy = train.metrics(found, jnp.asarray(labels))
    with torch.no_grad():
        others = [twin(params, dtype)(pixels(images, dtype)) for dtype in subject.dtypes]
    losses = [torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()) for logits in others]
    ours, truth = np.asarray(found, np.float64), others[0].numpy()
    yield subject.judge("evaluation/logits", ours, [logits.numpy() for logits in others])
    yield subject.judge("evaluation/loss", loss, [one.numpy() for one in losses])
    best = np.sort(truth, axis=1)
    sure = best[:, -1] - best[:, -2] > 2 * np.abs(ours - truth).max()
    yield subject.check("evaluation/predictions", (sure & (ours.argmax(1) != truth.argmax(1))).sum(), 0.0)
    yield subject.check("evaluation/accuracy", abs(float(accuracy) - (ours.argmax(1) == labels).mean()), FLOOR)
