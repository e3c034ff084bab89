"""The negative controls: classic mistakes made on purpose, and where the chain has to notice each first."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.lax import stop_gradient as stop

from jaxcnn.data import Dataset
from jaxcnn.networks.tutorial import CNN
from jaxcnn.recipe import sgd
from jaxcnn.train import Arrays
from parity.links import STEP_RATE
from parity.mistakes import (
    Control,
    axes,
    before,
    convolution,
    gradient_of,
    in_bfloat16,
    inputs,
    loss,
    operation,
    optimizer,
)
from parity.twins import training
from parity.twins.cases import dropout_key, torch_draws
from parity.twins.training import TrainedPair, Trial, trained_pair

NETWORK = CNN(4, 10, 10)  # a square fc4, so that its shape does not show that its kernel is transposed

PRECISION = "float64"


def small_trial(data: Dataset) -> Trial:
    """Choose what the mistakes are made on."""
    size: dict[str, Any] = {"images": 4, "subset": 22, "steps": 4, "stretch": 2, "evaluated": 40}
    cases = ("random", "training", "ties")
    return Trial(torch_draws(NETWORK, 1)[0], data, **size, cases=cases, compiled=False)


def catch(control: Control, trial: Trial) -> str | None:
    """Name the first comparison that fails with a mistake, None if none does."""
    pair = control.mistake(trained_pair(NETWORK, PRECISION))
    made = itertools.chain(training.checks(pair, trial), training.initial(pair))
    return next((check.name for check in made if not check.passed), None)


def run(trial: Trial) -> list[dict[str, Any]]:
    """Try every control: what caught it, and whether that is what should have."""
    results = []
    for control in (NONE, *CONTROLS):
        caught = catch(control, trial)
        expected = f"{PRECISION}/{control.link}/{control.tensor}{control.case and '@'}{control.case}"
        expected_name = expected if control.link else None
        passed = caught == expected_name
        results.append({"name": control.name, "caught_by": caught, "expected": expected_name, "passed": passed})
    return results


def flax_default(network: nn.Module, key: Any) -> Any:
    """Draw Flax's own initial weights: a normal distribution cut off, and biases of 0."""
    kernel, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros

    def draw(path: Any, leaf: Any) -> Any:
        return (kernel if leaf.ndim > 1 else zeros)(key, leaf.shape, leaf.dtype)

    shapes = jax.eval_shape(lambda: network.init(key, jnp.zeros((1, 32, 32, 3), network.param_dtype)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def last_batch_dropped(make: Callable[..., Any]) -> Callable[..., Any]:
    """Train on whole batches only."""

    def made(recipe: Any, batch_size: int) -> Callable[..., Any]:
        steps = make(recipe, batch_size)

        def train_steps(state: Any, data: Any, *rest: Any) -> Any:
            whole = len(data.images) // batch_size * batch_size
            return steps(state, Arrays(data.images[:whole], data.labels[:whole]), *rest)

        return train_steps

    return made


def fill_is_real(make: Callable[..., Any]) -> Callable[..., Any]:
    """Count what fills up the last batch."""

    def made(recipe: Any, *rest: Any) -> Callable[..., Any]:
        wrong = lambda logits, labels, real: recipe.loss(logits, labels, jnp.ones_like(real))  # noqa: E731
        return make(replace(recipe, loss=wrong), *rest)

    return made


def of_training(**wrong: Callable[[Any], Any]) -> Callable[[TrainedPair], TrainedPair]:
    """Replace parts of our training, each given the right one."""
    return lambda pair: replace(pair, **{name: make(getattr(pair, name)) for name, make in wrong.items()})


def together(*mistakes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make several mistakes."""

    def make(pair: Any) -> Any:
        for mistake in mistakes:
            pair = mistake(pair)
        return pair

    return make


NONE = Control("no mistake", lambda pair: pair, "", "")
CONTROLS = (
    Control("pixels scaled twice", inputs(lambda x: x / 255), "activations", "input", "random"),
    Control("colour channels reversed", inputs(lambda x: x[..., ::-1]), "activations", "input", "random"),
    Control("height and width exchanged", inputs(lambda x: x.swapaxes(1, 2)), "activations", "input", "random"),
    Control("conv kernel: height for width", axes("conv1/kernel", "o i h w -> w h i o"),
            "activations", "conv1", "random"),
    Control("conv kernel: inputs for outputs", axes("conv2/kernel", "o i h w -> h w o i"),
            "activations", "conv2", "random"),
    Control("dense kernel not transposed", axes("fc4/kernel", "o i -> o i"), "activations", "fc4", "random"),
    Control("dense after flatten not permuted", axes("fc3/kernel", "o i -> i o"), "activations", "fc3", "random"),
    Control("flatten in PyTorch's order", before("flat", lambda x: x.transpose(0, 3, 1, 2)),
            "activations", "flat", "random"),
    Control("padding off by one", convolution("conv1", lambda conv, x, k: conv(x, k, ((2, 0), (2, 0)))),
            "activations", "conv1", "random"),
    Control("kernel turned round", convolution("conv1", lambda conv, x, k: conv(x, k[::-1, ::-1])),
            "activations", "conv1", "random"),
    Control("products in bfloat16", convolution("conv1", lambda conv, x, k: conv(in_bfloat16(x), in_bfloat16(k))),
            "activations", "conv1", "random"),
    Control("convolution's input gradient", convolution(
        "conv2", lambda conv, x, k: conv(stop(x), k) + gradient_of(conv(x, stop(k[::-1, ::-1])))),
            "gradients", "conv1.bias", "random"),
    Control("convolution's kernel gradient", convolution(
        "conv2", lambda conv, x, k: conv(x, stop(k)) + gradient_of(conv(stop(x), jnp.roll(k, 1, axis=0)))),
            "gradients", "conv2.weight", "random"),
    Control("ReLU's gradient at 0", operation("act3", lambda module, call, x: jnp.maximum(x, 0)),
            "gradients", "fc3.bias", "ties"),
    Control("pooling with stride 1", operation("pool2", lambda module, call, x: nn.max_pool(x, (2, 2))[:, :16, :16]),
            "activations", "pool2", "random"),
    Control("pooling ties to all maxima", operation(
        "pool2", lambda module, call, x: x.reshape(len(x), 16, 2, 16, 2, -1).max(axis=(2, 4))),
            "gradients", "conv2.weight", "ties"),
    Control("pooling ties to the last maximum", operation(
        "pool2", lambda module, call, x: call(x[:, ::-1, ::-1])[:, ::-1, ::-1]),
            "gradients", "conv2.weight", "ties"),
    Control("dropout unscaled", operation(
        "drop1", lambda module, call, x, key: call(x, key) * (1 if key is None else 1 - module.rate)),
            "activations", "drop1", "training"),
    Control("dropout keeps what it should drop", operation(
        "drop1", lambda module, call, x, key: x if key is None else x / (1 - module.rate) - call(x, key)),
            "activations", "drop1.mask", "training"),
    Control("dropout on at evaluation", operation(
        "drop1", lambda module, call, x, key: call(x, dropout_key(0, len(x)) if key is None else key)),
            "activations", "drop1", "random"),
    Control("dropout off in training", operation("drop1", lambda module, call, x, key: x),
            "activations", "drop1", "training"),
    Control("labels off by one", loss(lambda right, x, labels, real: right(x, (labels + 1) % 10, real)),
            "outputs", "loss", "random"),
    Control("softmax twice", loss(lambda right, x, labels, real: right(jax.nn.softmax(x), labels, real)),
            "outputs", "loss", "random"),
    Control("sum for mean", loss(lambda right, x, labels, real: right(x, labels, real) * real.sum(dtype=x.dtype)),
            "outputs", "loss", "random"),
    Control("mean over the filled batch", loss(
        lambda right, x, labels, real: right(x, labels, real) * real.mean(dtype=x.dtype)),
            "outputs", "loss", "training"),
    Control("wrong momentum", optimizer(
        lambda right, momentum=0.0, **rest: sgd(STEP_RATE, momentum and 0.99, **rest)),
            "step", "conv1.weight", "momentum"),
    Control("dampened momentum", optimizer(
        lambda right, momentum=0.0, **rest: optax.chain(optax.scale(1 - momentum), right)),
            "step", "conv1.weight", "momentum"),
    Control("learning rate inside the momentum", optimizer(
        lambda right, **rest: optax.chain(optax.scale(STEP_RATE), sgd(1.0, **rest))),
            "step", "conv1.weight", "momentum"),
    Control("Nesterov left out", optimizer(lambda right, nesterov=False, **rest: sgd(STEP_RATE, **rest)),
            "step", "conv1.weight", "nesterov"),
    Control("weight decay after the step", optimizer(
        lambda right, weight_decay=0.0, **rest: optax.chain(
            sgd(STEP_RATE, **rest), optax.add_decayed_weights(-STEP_RATE * weight_decay))),
            "step", "conv1.weight.momentum", "decay"),
    Control("Flax's initial weights", of_training(draw=lambda _: flax_default), "trajectory", "conv1.weight.initial"),
    Control("last batch dropped", of_training(make_train_steps=last_batch_dropped), "trajectory", "conv1.weight"),
    Control("last batch filled with images", of_training(make_train_steps=fill_is_real), "trajectory", "conv1.weight"),
    Control("last batch not evaluated", of_training(
        predict_logits=lambda f: lambda *a, batch_size: f(*a, batch_size=batch_size).at[-(len(a[2]) % batch_size) :]
        .set(0)), "evaluation", "logits"),
    Control("accuracy over the filled batch", of_training(
        metrics=lambda f: lambda x, y: (f(x, y)[0], f(x, y)[1] * len(y) / (len(y) + -len(y) % 32))),
            "evaluation", "accuracy"),
)  # fmt: skip
