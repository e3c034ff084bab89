"""Our own training against PyTorch's: its start, single steps, the result of 200 steps, evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.stats import ks_2samp, kstwobign

from jaxcnn import train
from jaxcnn.data import Dataset
from jaxcnn.files import NamedArrays
from jaxcnn.networks import Network, describe
from parity import links
from parity.bounds import EPSILON, FACTOR, LEFT_OUT, Check, float32_floor, judge
from parity.pair import Case
from parity.torch_trace import channels_last
from parity.twins.cases import STEP, cases, dropout_key, torch_draws
from parity.twins.pairs import SEED, TrainedPair, mean_loss

# 200 steps of training amplify a difference: by 10 to 1000 with the tutorial's learning rate and batches of 8.
TRAJECTORY_BOUND = 1e-9
DRAWS, VALUES = 32, 1000  # how many draws, and how many values of each array
LARGEST = 1e9  # that is drawn
# In float32 rounding that puts a ReLU or a maximum on another side multiplies an error by a thousand; without that, of
# the arrays of a long-trained tutorial's network one is at up to 6 times its bound in half of all stretches, of
# speedrun's, of which batch norm takes the mean out, at twice.
APART = 10.0  # times its bound is an error if rounding decided otherwise
CHANCE = 1e-6  # of the distributions' check to fail if nothing is wrong
EPOCH_ORDER = jax.jit(train.epoch_order, static_argnums=(0, 2))


@dataclass(frozen=True)
class Trial:
    """What is compared, and how much of it; the defaults are the tutorial's."""

    weights: NamedArrays  # a `state_dict` of float32
    data: Dataset
    images: int = 8
    subset: int = 500  # in batches of 8: epochs of 63 steps, the last of 4 images
    batch: int = 8
    steps: int = 200
    rate: float = 0.001  # of learning
    momentum: float = 0.9
    # In float32 rounding decides unlike float64 somewhere in 10 to 20 % of stretches of 4 steps, in 0 to 50 % of 10
    # (four seeds, 70 steps).
    stretch: int = 4
    evaluated: int = 100
    cases: tuple[str, ...] = ("random", "images", "training", "huge", "tiny", "zeros", "flat", "ties")
    compiled: bool = True  # single passes and steps: a control runs each of them once, and compilation takes longer
    eager: bool = False  # training, for the same reason

    @property
    def per_epoch(self) -> int:
        """Count the steps of an epoch."""
        return -(-self.subset // self.batch)

    @property
    def epochs(self) -> int:
        """Count the epochs, including an incomplete one."""
        return -(-self.steps // self.per_epoch)

    def stretches(self) -> list[tuple[int, int]]:
        """Give the first and last steps of the dispatches: none goes beyond an epoch's end."""
        ends = {*range(0, self.steps, self.stretch), *range(0, self.steps, self.per_epoch), self.steps}
        return list(pairwise(sorted(ends)))


def grained(data: Dataset) -> Dataset:
    """Make training images half noise, so that none has flat parts, or is grey.

    In a flat part the windows of pooling tie: float32 decides 14 of 16 drawings unlike float64. What whitens grey
    images has outputs of nothing but rounding, which batch norm makes large. In float64 JAX and PyTorch differ by 4e-5
    after speedrun's first step on the digits, by 1e-7 if the noise is grey, and by 1e-14 on these.
    """
    images = data.train.images
    noise = np.random.default_rng(SEED).integers(0, 128, images.shape, dtype=np.uint8)
    return replace(data, train=replace(data.train, images=images // 2 + noise))


def speedrun_trial(weights: NamedArrays, data: Dataset, **chosen: Any) -> Trial:
    """Choose what is compared for speedrun.

    Its own learning rate: in float64 50 steps multiply a difference by 100.
    """
    usual = {"cases": ("random", "images", "training", "augmented", "zeros", "flat", "ties")}
    sizes = {"subset": 60, "steps": 50, "rate": 0.17, "momentum": 0.6, "stretch": 2}
    return Trial(weights, data, **{**usual, **sizes, **chosen})


TRIALS: dict[str, Callable[..., Trial]] = {"tutorial": Trial, "speedrun": speedrun_trial}


def trial_of(network: Network, weights: NamedArrays, data: Dataset, steps: int | None) -> Trial:
    """Choose what is compared for a network, and the number of training steps if it is not the usual one."""
    trial = TRIALS[describe(network)["name"]](weights, grained(data), **{} if steps is None else {"steps": steps})
    most = len(data.train)  # a folder of your own pictures may have few
    return replace(trial, images=min(trial.images, most), subset=min(trial.subset, most))


def checks(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Make all comparisons, each computed on demand."""
    for case in cases(pair.flax_module, trial.weights, trial.data.train, trial.images):
        if case.name in trial.cases:
            same, condition = yield from links.one_pass(pair, case, trial.compiled)
            if case.name == "training":
                yield from links.steps(pair, partial(take_step, pair, trial), same, condition, trial.compiled)
    yield from constants(pair, trial)
    yield from augmented(pair, trial)
    yield from trajectory(pair, trial)


def take_step(
    pair: TrainedPair, trial: Trial, optimizer: Any, variables: Any, opt_state: Any, case: Case
) -> train.TrainState:
    """Take a step of our own training, dropout on: `real` says which images of the batch count."""
    recipe = replace(pair.make_recipe(pair.flax_module, trial), optimizer=optimizer)
    state = train.with_variables(recipe, variables)._replace(step=jnp.uint32(STEP), opt_state=opt_state)
    batch = train.Batch(case.inputs, case.labels, case.real, jnp.arange(len(case.labels)))
    return train.train_step(recipe, state, batch, SEED)


def initial(pair: TrainedPair, draws: int = DRAWS) -> Iterator[Check]:
    """Check that training starts from PyTorch's distribution, by many draws of both frameworks."""
    ours = [pair.table.to_torch(pair.draw(pair.flax_module, jax.random.key(seed))) for seed in range(draws)]
    theirs = torch_draws(pair.flax_module, draws)
    for name in ours[0]:
        sides = [np.stack([np.ravel(draw[name]) for draw in many]) for many in (ours, theirs)]
        fixed = (sides[1] == sides[1][0]).all(axis=0)
        if fixed.any():
            wrong = float((sides[0] != sides[1])[:, fixed].mean())
            yield Check(pair.precision, "trajectory", f"{name}.fixed", wrong, 0.0)
        if fixed.all():
            continue
        samples = [side[:, ~fixed][:, :VALUES].ravel() for side in sides]
        # What two samples of one distribution exceed by CHANCE (Smirnov 1948).
        bound = kstwobign.isf(CHANCE) * sum(1 / len(sample) for sample in samples) ** 0.5
        yield Check(pair.precision, "trajectory", f"{name}.initial", float(ks_2samp(*samples).statistic), float(bound))


def constants(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Compare the constants of training images with PyTorch's; both are rounded to float32, the truth is not."""
    if pair.torch_constants is None:
        return
    images = trial.data.train.images
    recipe = pair.make_recipe(pair.flax_module, trial)
    ours = pair.table.to_torch({**pair.variables(trial.weights), **recipe.constants(images)})
    truth, invariants = pair.torch_constants(images)
    rounded = {name: tensor.float() for name, tensor in truth.items()}
    sides = [invariants({n: torch.as_tensor(one[n]).double() for n in truth}) for one in (ours, truth, rounded)]
    for name in sides[1]:
        place = {"precision": pair.precision, "link": "initial", "tensor": name, "floor": EPSILON}
        yield judge(*(side[name] for side in sides), **place)


def augmented(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Compare the images of the first batch of each epoch as they are trained on, before they are resized."""
    recipe = pair.make_recipe(pair.flax_module, trial)
    for epoch in range(trial.epochs if recipe.sizes else 0):
        step = epoch * trial.per_epoch
        inputs = batch_of(pair, trial, step).inputs
        places = jnp.asarray(order_of(trial, epoch)[: trial.batch])
        batch = train.Batch(jnp.asarray(inputs.images), places, places >= 0, places)
        keys = train.random_stream(SEED, train.SHIFT, step), train.random_stream(SEED, train.FLIP)
        ours = np.asarray(recipe.augment(batch, *keys, jnp.uint32(epoch)))
        whole = inputs._replace(size=ours.shape[1])
        theirs = channels_last(pair.torch_input(whole, torch.float64)[0]) * 255
        yield judge(ours, theirs, precision=pair.precision, link="trajectory", tensor=f"images{epoch}")


def trajectory(pair: TrainedPair, trial: Trial) -> Iterator[Check]:
    """Replay the project's own jitted training in PyTorch, dispatch after dispatch; then evaluate where it ends.

    In float64 PyTorch replays it from the start. In float32 that would compare chaos with chaos: the first ReLU that
    rounding puts on another side multiplies the difference by a thousand. There PyTorch replays every second stretch
    from the state that JAX starts it with, and the median over these is judged.
    """
    single, recipe = pair.precision == "float32", pair.make_recipe(pair.flax_module, trial)
    images, labels = trial.data.train.images[: trial.subset], trial.data.train.labels[: trial.subset]
    data = train.Arrays(jnp.asarray(images), jnp.asarray(labels))
    state = train.with_variables(recipe, pair.variables(trial.weights))
    take_steps = pair.make_train_steps(recipe, trial.batch)
    still = {name: np.zeros_like(trial.weights[name]) for name in pair.trained}
    theirs = [links.snapshot(trial.weights, still, 0.0)]
    stretches: list[list[Check]] = []
    for number, (start, end) in enumerate(trial.stretches()):
        if single:
            theirs = [links.flax_snapshot(pair, state)] * len(pair.dtypes)
        with jax.disable_jit(trial.eager):
            state = take_steps(state, data, jnp.uint32(SEED), jnp.int32(end - start))
        if single and number % 2:
            continue
        if start % trial.per_epoch == 0:
            theirs = [{**before, "loss": np.array(0.0)} for before in theirs]
        batches = [batch_of(pair, trial, step) for step in range(start, end)]
        theirs = [
            links.torch_training(pair, before, batches, dtype, pair.options(trial, start))
            for before, dtype in zip(theirs, pair.dtypes, strict=True)
        ]
        ours, place = links.flax_snapshot(pair, state), (pair, trial.weights, "trajectory")
        stretches.append([*links.compare(*place, ours, theirs, step=end, bound=TRAJECTORY_BOUND)])
    worst = []
    for tensor in zip(*stretches, strict=True):
        points = tuple((check.step or 0, min(check.error, LARGEST), check.pytorch or 0.0) for check in tensor)
        chosen = _typical(trial, tensor) if single else max(tensor, key=lambda check: check.error)
        worst.append(replace(chosen, points=points))
    yield from worst
    if single:
        left_out = [any(c.error > APART * w.bound for c, w in zip(each, worst, strict=True)) for each in stretches]
        yield Check(pair.precision, "trajectory", "left_out", float(np.mean(left_out)), LEFT_OUT)
    yield from evaluation(pair, trial, pair.table.to_torch(state.variables))


def order_of(trial: Trial, epoch: int) -> np.ndarray:
    """Give the order of an epoch of our training."""
    return np.asarray(EPOCH_ORDER(SEED, epoch, min(trial.subset, len(trial.data.train))))


def batch_of(pair: TrainedPair, trial: Trial, step: int) -> Case:
    """Make the batch of a step of our training."""
    epoch, position = divmod(step, trial.per_epoch)
    order = order_of(trial, epoch)[position * trial.batch :][: trial.batch]
    images, labels = trial.data.train.images[order], trial.data.train.labels[order]
    real, key = np.ones(len(order), bool), dropout_key(step, len(order))
    return Case("", trial.weights, pair.batch(trial, images, order, step), labels, real, key)


def _typical(trial: Trial, tensor: tuple[Check, ...]) -> Check:
    """Take the median over the stretches, with a bound from PyTorch's median error."""
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
        theirs = pair.torch_logits(pair, Case("", weights, images), dtype)
        others.append({"logits": theirs.detach().numpy(), "loss": mean_loss(theirs, labels, real).detach().numpy()})
    found = {"logits": np.asarray(logits), "loss": np.asarray(loss)}
    condition = links.condition_of(lambda outputs: mean_loss(outputs, labels, real), others[0]["logits"])
    yield from links.compare(pair, weights, "evaluation", found, others, condition)
    ours, truth = np.asarray(logits, np.float64), others[0]["logits"]
    sure = np.diff(np.sort(truth, axis=1))[:, -1] > 2 * np.abs(ours - truth).max()
    wrong = (sure & (ours.argmax(1) != truth.argmax(1))).sum()
    yield Check(pair.precision, "evaluation", "predictions", float(wrong), 0.0)
    error = abs(float(accuracy) - (ours.argmax(1) == labels).mean())
    yield Check(pair.precision, "evaluation", "accuracy", float(error), float32_floor(weights))
