"""Our own training against PyTorch's: where it starts, single steps, where 200 steps lead, what is evaluated."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import ks_2samp, kstwobign

from jaxcnn import train
from jaxcnn.data import Dataset
from jaxcnn.files import NamedArrays
from parity import links
from parity.bounds import FACTOR, LEFT_OUT, Check, float32_floor
from parity.pair import Case, torch_forward
from parity.twins.cases import SEED, STEP, TrainedPair, cases, dropout_key, mean_loss, torch_draws

# 200 steps of training multiply a difference: by 10 to 1000 with the tutorial's learning rate and batches of 8.
TRAJECTORY_BOUND = 1e-9
LEARNING_RATE, MOMENTUM = 0.001, 0.9  # the tutorial's
DRAWS, VALUES = 32, 1000  # how many draws, and how many values of each array
LARGEST = 1e9  # that is drawn
CHANCE = 1e-6  # of the distributions' check to fail if nothing is wrong
EPOCH_ORDER = jax.jit(train.epoch_order, static_argnums=(0, 2))


@dataclass(frozen=True)
class Trial:
    """What is compared, and how much of it."""

    weights: NamedArrays  # a `state_dict` of float32
    data: Dataset
    images: int = 8
    subset: int = 500  # in batches of 8: epochs of 63 steps, the last of 4 images
    batch: int = 8
    steps: int = 200
    # In float32 rounding decides unlike float64 somewhere in 10 to 20 % of stretches of 4 steps, in 0 to 50 % of 10
    # (four seeds, 70 steps).
    stretch: int = 4
    evaluated: int = 100
    cases: tuple[str, ...] = ("random", "images", "training", "huge", "tiny", "zeros", "flat", "ties")
    compiled: bool = True  # single passes and steps: a control runs each of them once, and compilation takes longer

    @property
    def per_epoch(self) -> int:
        """Count the steps of an epoch."""
        return -(-self.subset // self.batch)

    def stretches(self) -> list[tuple[int, int]]:
        """Give the first and last steps of the dispatches: none goes beyond an epoch's end."""
        ends = {*range(0, self.steps, self.stretch), *range(0, self.steps, self.per_epoch), self.steps}
        return list(pairwise(sorted(ends)))


def checks(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Make all comparisons, each computed as it is asked for."""
    for case in cases(pair.flax_module, trial.weights, trial.data.train, trial.images):
        if case.name in trial.cases:
            same = yield from links.one_pass(pair, case, trial.compiled)
            if case.key is not None:
                yield from links.steps(pair, partial(take_step, pair), same, trial.compiled)
    yield from trajectory(pair, trial)


def take_step(pair: TrainedPair, optimizer: Any, variables: Any, opt_state: Any, case: Any) -> train.TrainState:
    """Take a step of our own training, dropout on: `real` says which images of the batch count."""
    recipe = replace(pair.make_recipe(pair.flax_module, LEARNING_RATE), optimizer=optimizer)
    state = train.with_variables(recipe, variables)._replace(step=jnp.uint32(STEP), opt_state=opt_state)
    return train.train_step(recipe, state, train.Batch(case.inputs, case.labels, case.real), SEED)


def initial(pair: TrainedPair, draws: int = DRAWS) -> Iterator[Check]:
    """Check that training starts from PyTorch's distribution, by many draws of both frameworks."""
    ours = [pair.table.to_torch(pair.draw(pair.flax_module, jax.random.key(seed))) for seed in range(draws)]
    theirs = torch_draws(pair.flax_module, draws)
    for name in ours[0]:
        samples = [np.concatenate([np.ravel(draw[name])[:VALUES] for draw in many]) for many in (ours, theirs)]
        # What two samples of one distribution exceed by CHANCE (Smirnov 1948).
        bound = kstwobign.isf(CHANCE) * sum(1 / len(sample) for sample in samples) ** 0.5
        yield Check(pair.precision, "trajectory", f"{name}.initial", float(ks_2samp(*samples).statistic), float(bound))


def trajectory(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Replay the project's own jitted training in PyTorch, dispatch after dispatch; then evaluate where it ends.

    In float64 PyTorch replays it from the start. In float32 that would compare chaos with chaos: the first ReLU that
    rounding puts on another side multiplies the difference by a thousand. There PyTorch replays every second stretch
    from the state that JAX starts it with, and the median over these is judged.
    """
    single, recipe = pair.precision == "float32", pair.make_recipe(pair.flax_module, LEARNING_RATE, MOMENTUM)
    images, labels = trial.data.train.images[: trial.subset], trial.data.train.labels[: trial.subset]
    data = train.Arrays(jnp.asarray(images), jnp.asarray(labels))
    state = train.with_variables(recipe, pair.variables(trial.weights))
    take_steps = pair.make_train_steps(recipe, trial.batch)
    theirs = [links.snapshot(trial.weights, {name: np.zeros_like(a) for name, a in trial.weights.items()}, 0.0)]
    stretches: list[list[Check]] = []
    for number, (start, end) in enumerate(trial.stretches()):
        if single:
            theirs = [links.flax_snapshot(pair, state)] * len(pair.dtypes)
        state = take_steps(state, data, jnp.uint32(SEED), jnp.int32(end - start))
        if single and number % 2:
            continue
        if start % trial.per_epoch == 0:
            theirs = [{**before, "loss": np.array(0.0)} for before in theirs]
        batches = [batch_of(trial, step, images, labels) for step in range(start, end)]
        theirs = [
            links.torch_training(pair, before, batches, dtype, LEARNING_RATE, momentum=MOMENTUM)
            for before, dtype in zip(theirs, pair.dtypes, strict=True)
        ]
        ours, place = links.flax_snapshot(pair, state), {"step": end, "bound": TRAJECTORY_BOUND}
        stretches.append([*links.compare(pair, trial.weights, "trajectory", ours, theirs, **place)])
    worst = []
    for tensor in zip(*stretches, strict=True):
        points = tuple((check.step or 0, min(check.error, LARGEST), check.pytorch or 0.0) for check in tensor)
        chosen = _typical(trial, tensor) if single else max(tensor, key=lambda check: check.error)
        worst.append(replace(chosen, points=points))
    yield from worst
    if single:
        left_out = [any(c.error > w.bound for c, w in zip(each, worst, strict=True)) for each in stretches]
        yield Check(pair.precision, "trajectory", "left_out", float(np.mean(left_out)), LEFT_OUT)
    yield from evaluation(pair, trial, pair.table.to_torch(state.variables))


def batch_of(trial: Trial, step: int, images: np.ndarray, labels: np.ndarray) -> Case:
    """Make the batch of a step of our training."""
    epoch, position = divmod(step, trial.per_epoch)
    order = np.asarray(EPOCH_ORDER(SEED, epoch, len(images)))[position * trial.batch :][: trial.batch]
    real, key = np.ones(len(order), bool), dropout_key(step, len(order))
    return Case("", trial.weights, images[order], labels[order], real, key)


def _typical(trial: Trial, tensor: tuple[Check, ...]) -> Check:
    """Take the median over the stretches, with the bound that PyTorch's median error makes."""
    theirs = median(check.pytorch or 0.0 for check in tensor)
    middle = sorted(tensor, key=lambda check: check.error)[(len(tensor) - 1) // 2]
    return replace(middle, bound=max(FACTOR * theirs, float32_floor(trial.weights)), pytorch=theirs)


def evaluation(pair: TrainedPair, trial: Trial, weights: NamedArrays) -> Iterator[Check]:
    """Compare logits, loss, predictions and accuracy of test images, whose number no batch divides."""
    images, labels = trial.data.test.images[: trial.evaluated], trial.data.test.labels[: trial.evaluated]
    logits = pair.predict_logits(pair.flax_module, pair.variables(weights), jnp.asarray(images), batch_size=32)
    loss, accuracy = pair.metrics(logits, jnp.asarray(labels))
    real, others = np.ones(len(labels), bool), []
    for dtype in pair.dtypes:
        theirs, _ = torch_forward(pair, Case("", weights, images), dtype)
        others.append({"logits": theirs.detach().numpy(), "loss": mean_loss(theirs, labels, real).detach().numpy()})
    yield from links.compare(pair, weights, "evaluation", {"logits": logits, "loss": loss}, others)
    ours, truth = np.asarray(logits, np.float64), others[0]["logits"]
    sure = np.diff(np.sort(truth, axis=1))[:, -1] > 2 * np.abs(ours - truth).max()
    wrong = (sure & (ours.argmax(1) != truth.argmax(1))).sum()
    yield Check(pair.precision, "evaluation", "predictions", float(wrong), 0.0)
    error = abs(float(accuracy) - (ours.argmax(1) == labels).mean())
    yield Check(pair.precision, "evaluation", "accuracy", float(error), float32_floor(weights))
