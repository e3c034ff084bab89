"""The negative controls: classic mistakes made on purpose, and where the chain must notice each first."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.lax import stop_gradient as stop

from jaxcnn import train
from jaxcnn.data import Dataset
from jaxcnn.networks import Network
from jaxcnn.networks.tutorial import CNN
from jaxcnn.optimizers import sgd
from parity.bounds import Check, name_of
from parity.mistakes import Control, axes, convolution, gradient_of, in_bfloat16, inputs, loss, operation, optimizer
from parity.pair import STEP_RATE
from parity.twins import training
from parity.twins.cases import dropout_key, torch_draws
from parity.twins.pairs import pair_of

NETWORK = CNN(4, 10, 10)  # a square fc4, so that its shape does not show that its kernel is transposed
PRECISION = "float64"


def small_trial(data: Dataset) -> training.Trial:
    """Choose the training that the mistakes are made in."""
    weights, cases = torch_draws(NETWORK, 1)[0], ("random", "training", "ties")
    return training.Trial(weights, data, 4, subset=22, steps=4, stretch=2, evaluated=40, cases=cases, compiled=False)


def catch(control: Control, trial: training.Trial, network: Network) -> Check | None:
    """Find the first comparison that fails with a mistake, None if none does."""
    pair = control.mistake(pair_of(network, PRECISION))
    made = itertools.chain(training.checks(pair, trial), training.initial(pair))
    return next((check for check in made if not check.passed), None)


def run(
    trial: training.Trial, network: Network = NETWORK, controls: tuple[Control, ...] | None = None
) -> list[dict[str, Any]]:
    """Try every control, by default the tutorial's: what caught it, and whether that is what should have."""
    results = []
    for control in (NONE, *(CONTROLS if controls is None else controls)):
        caught = catch(control, trial, network)
        place = caught and (caught.link, caught.tensor, caught.case)
        names = {"caught_by": caught and caught.name, "expected": control.first and name_of(PRECISION, *control.first)}
        results.append({"name": control.name, **names, "passed": place == control.first})
    return results


def flax_default(network: nn.Module, key: Any) -> Any:
    """Draw Flax's own initial weights: a truncated normal distribution, and biases of 0."""
    kernel, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
    shapes = jax.eval_shape(lambda: network.init(key, jnp.zeros((1, 32, 32, 3), network.param_dtype)))
    return jax.tree.map(lambda leaf: (kernel if leaf.ndim > 1 else zeros)(key, leaf.shape, leaf.dtype), shapes)


def last_batch_dropped(recipe: Any, batch_size: int) -> Callable[..., Any]:
    """Train only on whole batches."""
    steps = train.make_train_steps(recipe, batch_size)
    whole = lambda array: array[: len(array) // batch_size * batch_size]  # noqa: E731
    return lambda state, data, *rest: steps(state, jax.tree.map(whole, data), *rest)


def fill_counts(recipe: Any, batch_size: int) -> Callable[..., Any]:
    """Count the padding of the last batch."""
    wrong = lambda logits, labels, real: recipe.loss(logits, labels, jnp.ones_like(real))  # noqa: E731
    return train.make_train_steps(replace(recipe, loss=wrong), batch_size)


def last_batch_not_evaluated(*arguments: Any, batch_size: int) -> Any:
    """Leave the logits of the last batch zero."""
    logits = train.predict_logits(*arguments, batch_size=batch_size)
    return logits.at[-(len(logits) % batch_size) :].set(0)


def accuracy_over_fill(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Divide by all images of the last batch of 32, padding included."""
    loss, accuracy = train.metrics(logits, labels)
    return loss, accuracy * len(labels) / (len(labels) + -len(labels) % 32)


NONE = Control("no mistake", None, lambda pair: pair)
CONTROLS = (
    Control("pixels scaled twice", ("activations", "input", "random"), inputs(lambda x: x / 255)),
    Control("colour channels reversed", ("activations", "input", "random"), inputs(lambda x: x[..., ::-1])),
    Control("height and width exchanged", ("activations", "input", "random"), inputs(lambda x: x.swapaxes(1, 2))),
    Control("conv kernel: height for width", ("activations", "conv1", "random"),
            axes("conv1/kernel", "o i h w -> w h i o")),
    Control("conv kernel: inputs for outputs", ("activations", "conv2", "random"),
            axes("conv2/kernel", "o i h w -> h w o i")),
    Control("dense kernel not transposed", ("activations", "fc4", "random"), axes("fc4/kernel", "o i -> o i")),
    Control("dense after flatten not permuted", ("activations", "fc3", "random"), axes("fc3/kernel", "o i -> i o")),
    Control("flatten in PyTorch's order", ("activations", "flat", "random"),
            operation("flat", lambda layer, call, x: call(x.transpose(0, 3, 1, 2)))),
    Control("padding off by one", ("activations", "conv1", "random"),
            convolution("conv1", lambda conv, x, k: conv(x, k, ((2, 0), (2, 0))))),
    Control("kernel turned round", ("activations", "conv1", "random"),
            convolution("conv1", lambda conv, x, k: conv(x, k[::-1, ::-1]))),
    Control("products in bfloat16", ("activations", "conv1", "random"),
            convolution("conv1", lambda conv, x, k: conv(in_bfloat16(x), in_bfloat16(k)))),
    Control("convolution's input gradient", ("gradients", "conv1.bias", "random"),
            convolution("conv2", lambda conv, x, k: conv(stop(x), k) + gradient_of(conv(x, stop(k[::-1, ::-1]))))),
    Control("convolution's kernel gradient", ("gradients", "conv2.weight", "random"),
            convolution("conv2", lambda conv, x, k: conv(x, stop(k)) + gradient_of(conv(stop(x), jnp.roll(k, 1, 0))))),
    Control("ReLU's gradient at 0", ("gradients", "fc3.bias", "ties"),
            operation("act3", lambda layer, call, x: jnp.maximum(x, 0))),
    Control("pooling with stride 1", ("activations", "pool2", "random"),
            operation("pool2", lambda layer, call, x: nn.max_pool(x, (2, 2))[:, :16, :16])),
    Control("pooling ties to all maxima", ("gradients", "conv2.weight", "ties"),
            operation("pool2", lambda layer, call, x: x.reshape(len(x), 16, 2, 16, 2, -1).max(axis=(2, 4)))),
    Control("pooling ties to the last maximum", ("gradients", "conv2.weight", "ties"),
            operation("pool2", lambda layer, call, x: call(x[:, ::-1, ::-1])[:, ::-1, ::-1])),
    Control("dropout unscaled", ("activations", "drop1", "training"),
            operation("drop1", lambda layer, call, x, key: x if key is None else call(x, key) * (1 - layer.rate))),
    Control("dropout keeps what it should drop", ("activations", "drop1.mask", "training"),
            operation("drop1", lambda layer, call, x, key: x if key is None else x / (1 - layer.rate) - call(x, key))),
    Control("dropout on at evaluation", ("activations", "drop1", "random"),
            operation("drop1", lambda layer, call, x, key: call(x, key or dropout_key(0, len(x))))),
    Control("dropout off in training", ("activations", "drop1", "training"),
            operation("drop1", lambda layer, call, x, key: x)),
    Control("labels off by one", ("outputs", "loss", "random"),
            loss(lambda right, x, y, real: right(x, (y + 1) % 10, real))),
    Control("softmax twice", ("outputs", "loss", "random"),
            loss(lambda right, x, *rest: right(jax.nn.softmax(x), *rest))),
    Control("sum for mean", ("outputs", "loss", "random"),
            loss(lambda right, x, labels, real: right(x, labels, real) * real.sum(dtype=x.dtype))),
    Control("mean over the filled batch", ("outputs", "loss", "training"),
            loss(lambda right, x, labels, real: right(x, labels, real) * real.mean(dtype=x.dtype))),
    Control("wrong momentum", ("step", "conv1.weight", "momentum"),
            optimizer(lambda right, momentum=0.0, **rest: sgd(STEP_RATE, momentum and 0.99, **rest))),
    Control("dampened momentum", ("step", "conv1.weight", "momentum"),
            optimizer(lambda right, momentum=0.0, **rest: optax.chain(optax.scale(1 - momentum), right))),
    Control("learning rate inside the momentum", ("step", "conv1.weight", "momentum"),
            optimizer(lambda right, **rest: optax.chain(optax.scale(STEP_RATE), sgd(1.0, **rest)))),
    Control("Nesterov left out", ("step", "conv1.weight", "nesterov"),
            optimizer(lambda right, nesterov=False, **rest: sgd(STEP_RATE, **rest))),
    Control("weight decay after the step", ("step", "conv1.weight.momentum", "decay"),
            optimizer(lambda right, weight_decay=0.0, **rest: optax.chain(
                sgd(STEP_RATE, **rest), optax.add_decayed_weights(-STEP_RATE * weight_decay)))),
    Control("Flax's initial weights", ("trajectory", "conv1.weight.initial", ""), partial(replace, draw=flax_default)),
    Control("last batch dropped", ("trajectory", "conv1.weight", ""),
            partial(replace, make_train_steps=last_batch_dropped)),
    Control("last batch filled with images", ("trajectory", "conv1.weight", ""),
            partial(replace, make_train_steps=fill_counts)),
    Control("last batch not evaluated", ("evaluation", "logits", ""),
            partial(replace, predict_logits=last_batch_not_evaluated)),
    Control("accuracy over the filled batch", ("evaluation", "accuracy", ""),
            partial(replace, metrics=accuracy_over_fill)),
)  # fmt: skip
