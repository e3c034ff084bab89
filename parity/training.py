"""The links of training: where it starts, single steps, where 200 steps lead, and what comes out is evaluated."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Key
from optax import tree_utils

from jaxcnn import train
from jaxcnn.files import NamedArrays
from jaxcnn.model import Params, initial_params
from parity.cases import SEED, STEP, Case, Trial, torch_draws
from parity.compare import FACTOR, FLOOR, LEFT_OUT, TRAJECTORY_BOUND, Check, kolmogorov_smirnov
from parity.torch_model import SharedDropout, mean_loss, pixels, twin
from parity.weights import as_state_dict

LEARNING_RATE, MOMENTUM = 0.001, 0.9  # the tutorial's
LARGE_RATE = 0.5  # of single steps: the new parameters show what the optimizer does in more than their last digits
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
}
SEEDS, VALUES = 32, 1000  # how many draws, and how many values of each array
LARGEST = 1e9  # that is drawn

Drift = list[dict[str, float]]


def snapshot(params: NamedArrays, buffers: NamedArrays, loss_sum: Any) -> NamedArrays:
    """A state of training by its names: parameters, momentum buffers where there are any, and the summed loss."""
    return {**params, **{f"{name}.momentum": array for name, array in buffers.items()}, "loss": np.array(loss_sum)}


def jax_snapshot(state: train.TrainState) -> NamedArrays:
    """JAX's side of training, copied."""
    buffers: Any = tree_utils.tree_get(state.opt_state, "trace")
    return snapshot(as_state_dict(state.params), {} if buffers is None else as_state_dict(buffers), state.loss_sum)


class TorchTraining:
    """PyTorch's side of training, with JAX's batches and dropout masks."""

    def __init__(self, params: Params, dtype: torch.dtype, learning_rate: float, **options: Any) -> None:
        self.network, self.dtype, self.loss_sum = twin(params, dtype), dtype, 0.0
        self.optimizer = torch.optim.SGD(self.network.parameters(), learning_rate, **options)

    def load(self, start: NamedArrays) -> None:
        """Go on from another state than its own."""
        for name, p in self.network.named_parameters():
            p.data = torch.tensor(start[name], dtype=self.dtype)
            self.optimizer.state[p]["momentum_buffer"] = torch.tensor(start[f"{name}.momentum"], dtype=self.dtype)
        self.loss_sum = float(start["loss"])

    def step(self, images: np.ndarray, labels: np.ndarray, real: np.ndarray, key: Key[Array, ""] | None) -> None:
        """One step with the dropout masks of `key`."""
        for layer in self.network.children():
            if isinstance(layer, SharedDropout):
                layer.key = key
        loss = mean_loss(self.network(pixels(images, self.dtype)), labels, real)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item() * real.sum()

    def snapshot(self) -> NamedArrays:
        """The state, copied."""
        named = {name: p.detach().numpy().copy() for name, p in self.network.named_parameters()}
        states = {name: self.optimizer.state[p] for name, p in self.network.named_parameters()}
        used = self.optimizer.param_groups[0]["momentum"]
        buffers = {name: state["momentum_buffer"].numpy().copy() for name, state in states.items() if used}
        return snapshot(named, buffers, self.loss_sum)


def steps(trial: Trial, case: Case) -> Iterator[Check]:
    """One step of each kind of SGD, from momentum buffers that are not zero, with dropout and a partial batch."""
    rng = np.random.default_rng(SEED)
    buffers = trial.cast(jax.tree.map(lambda p: rng.normal(0, 0.01, p.shape).astype(np.float32), case.params))
    batch = train.Batch(*(jnp.asarray(array) for array in (case.images, case.labels, case.real)))

    @jax.jit  # all at once: the compiler sees that they share their gradient
    def taken(params: Params, buffers: Params, batch: train.Batch) -> dict[str, train.TrainState]:
        after = {}
        for kind, options in OPTIMIZERS.items():
            optimizer = train.sgd(LARGE_RATE, **options)
            state = train.with_params(optimizer, params)._replace(step=jnp.uint32(STEP))
            if options:
                state = state._replace(opt_state=tree_utils.tree_set(state.opt_state, trace=buffers))
            after[kind] = train.train_step(trial.network, optimizer, state, batch, SEED)
        return after

    after = taken(trial.cast(case.params), buffers, batch)
    start = snapshot(as_state_dict(case.params), as_state_dict(buffers), 0.0)
    for kind, options in OPTIMIZERS.items():
        others = [TorchTraining(case.params, dtype, LARGE_RATE, **options) for dtype in trial.dtypes]
        for other in others:
            other.load(start)
            other.step(case.images, case.labels, case.real, case.key)
        yield from trial.judge("step", jax_snapshot(after[kind]), [other.snapshot() for other in others], f"@{kind}")


def initial(trial: Trial) -> Iterator[Check]:
    """That training starts from PyTorch's distribution: both frameworks' own draws."""
    ours = [as_state_dict(initial_params(trial.network, jax.random.key(seed))) for seed in range(SEEDS)]
    theirs = torch_draws(trial.network, SEEDS)
    for name in ours[0]:
        samples = [np.concatenate([np.ravel(one[name])[:VALUES] for one in many]) for many in (ours, theirs)]
        yield trial.check(f"trajectory/{name}.initial", *kolmogorov_smirnov(*samples))


def stretches(trial: Trial) -> list[tuple[int, int]]:
    """First and last steps of the dispatches: none goes beyond an epoch's end."""
    per_epoch = -(-trial.subset // trial.batch)
    ends = {*range(0, trial.steps, trial.stretch), *range(0, trial.steps, per_epoch), trial.steps}
    return list(pairwise(sorted(ends)))


def trajectory(trial: Trial, drift: Drift) -> Iterator[Check]:
    """The project's own jitted training, dispatch after dispatch, replayed in PyTorch; and the evaluation of its end.

    In float64 PyTorch replays it from the start. In float32 that would be to compare chaos with chaos: the first ReLU
    that rounding puts on another side multiplies the difference by a thousand. There PyTorch replays every
    second stretch from the state that JAX begins it with, and the median over these is judged.
    """
    network, optimizer, batch = trial.network, train.sgd(LEARNING_RATE, MOMENTUM), trial.batch
    images, labels = trial.data.train.images[: trial.subset], trial.data.train.labels[: trial.subset]
    per_epoch, data = -(-len(images) // batch), train.Arrays(jnp.asarray(images), jnp.asarray(labels))
    state = train.with_params(optimizer, trial.cast(trial.params))
    others = [TorchTraining(trial.params, dtype, LEARNING_RATE, momentum=MOMENTUM) for dtype in trial.dtypes]
    epoch_order = jax.jit(lambda epoch: train.epoch_order(SEED, epoch, len(images)))
    found: list[list[Check]] = []
    for number, (start, end) in enumerate(stretches(trial)):
        before, count = jax_snapshot(state), jnp.int32(end - start)
        state = train.train_steps(network, optimizer, state, data, jnp.uint32(SEED), count, batch_size=batch)
        if trial.precision == "float32" and number % 2:
            continue
        for other in others:
            if trial.precision == "float32":
                other.load(before)
            for step in range(start, end):
                epoch, position = divmod(step, per_epoch)
                if position == 0:
                    other.loss_sum = 0.0
                chosen = np.asarray(epoch_order(epoch))[position * batch :][:batch]
                key = train.random_stream(SEED, train.DROPOUT, step)
                other.step(images[chosen], labels[chosen], np.ones(len(chosen), bool), key)
        theirs = [other.snapshot() for other in others]
        found.append(list(trial.judge("trajectory", jax_snapshot(state), theirs, bound=TRAJECTORY_BOUND,
                                        where=f"after step {end}")))  # fmt: skip
        largest = {of: max(getattr(check, of) or 0.0 for check in found[-1]) for of in ("error", "pytorch")}
        drift.append({"step": end, **{of: min(error, LARGEST) for of, error in largest.items()}})
    if trial.precision == "float32":
        yield from _typical(trial, found)
    else:
        yield from (max(checks, key=lambda check: check.error) for checks in zip(*found, strict=True))
    yield from evaluation(trial, jax.tree.map(np.array, state.params))


def _typical(trial: Trial, found: list[list[Check]]) -> Iterator[Check]:
    """Each tensor's median over the stretches; those beyond the bound, where a decision fell otherwise, are counted."""
    beyond = np.zeros(len(found), bool)
    for checks in zip(*found, strict=True):
        own = median(check.pytorch or 0.0 for check in checks)
        bound = max(FACTOR * own, FLOOR)
        beyond |= [check.error > bound for check in checks]
        middle = sorted(checks, key=lambda check: check.error)[(len(checks) - 1) // 2]
        yield replace(middle, bound=bound, pytorch=own)
    yield trial.check("trajectory/left_out", beyond.mean(), LEFT_OUT)


def evaluation(trial: Trial, params: Params) -> Iterator[Check]:
    """Logits, loss, predictions and accuracy of test images; their number divides by no batch."""
    images, labels = trial.data.test.images[: trial.evaluated], trial.data.test.labels[: trial.evaluated]
    ours = train.predict_logits(trial.network, trial.cast(params), jnp.asarray(images), batch_size=32)
    loss, accuracy = train.metrics(ours, jnp.asarray(labels))
    with torch.no_grad():
        theirs = [twin(params, dtype)(pixels(images, dtype)) for dtype in trial.dtypes]
    real = np.ones(len(labels), bool)
    others = [{"logits": logits.numpy(), "loss": mean_loss(logits, labels, real).numpy()} for logits in theirs]
    yield from trial.judge("evaluation", {"logits": ours, "loss": loss}, others)
    ours, truth = np.asarray(ours, np.float64), others[0]["logits"]
    best = np.sort(truth, axis=1)
    sure = best[:, -1] - best[:, -2] > 2 * np.abs(ours - truth).max()
    yield trial.check("evaluation/predictions", (sure & (ours.argmax(1) != truth.argmax(1))).sum(), 0.0)
    yield trial.check("evaluation/accuracy", abs(float(accuracy) - (ours.argmax(1) == labels).mean()), FLOOR)
