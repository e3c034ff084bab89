"""The negative controls: classic mistakes, each made on purpose, and where the chain has to notice it first."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.lax import reduce_precision
from jax.lax import stop_gradient as stop
from jaxtyping import Array

from jaxcnn import layers, model, train
from jaxcnn.data import Dataset
from jaxcnn.model import CNN
from parity import chain, training, weights
from parity.cases import Trial, random_params
from parity.weights import DENSE, LAYERS

WIDTHS = (4, 10, 10)  # a square fc4, so that its kernel can be transposed unnoticed by its shape


@dataclass(frozen=True)
class Fault:
    """A mistake.

    caught_by: the first check that fails, without the precision.
    place: the function that is replaced, as (module, name).  wrong: what replaces it, given the right one.
    """

    name: str
    caught_by: str | None
    place: tuple[Any, str]
    wrong: Callable[[Any], Any]


def narrow(data: Dataset) -> Trial:
    """What the mistakes are made on: a narrow network, in float64."""
    size: dict[str, Any] = {"images": 4, "subset": 22, "steps": 4, "stretch": 2, "evaluated": 40}
    return Trial("float64", random_params(CNN(*WIDTHS)), data, **size, cases=("random", "training", "ties"))


def injected(fault: Fault) -> AbstractContextManager[Any]:
    """Make a mistake for a while."""
    return mock.patch.object(*fault.place, fault.wrong(getattr(*fault.place)))


def catch(fault: Fault, trial: Trial) -> str | None:
    """The name of the first check that fails with a fault, None where none does.

    Nothing is jitted: what was compiled without the mistake would be used with it.
    """
    with injected(fault), jax.disable_jit():
        checks = itertools.chain(chain.checks(trial, []), training.initial(trial))
        return next((check.name for check in checks if not check.passed), None)


def run(trial: Trial) -> list[dict[str, Any]]:
    """Every control: what caught it, and whether that is what should have."""
    found = []
    for fault in (NONE, *FAULTS):
        caught = catch(fault, trial)
        expected = fault.caught_by and f"{trial.precision}/{fault.caught_by}"
        found.append({"name": fault.name, "caught_by": caught, "expected": expected, "passed": caught == expected})
    return found


def kernel(layer: str, axes: str) -> Callable[[Any], Any]:
    """The table with a kernel whose axes are taken for others."""
    entry, bias = LAYERS[layer]
    return lambda _: {**LAYERS, layer: (entry._replace(flax=("kernel", axes)), bias)}


def gradient_of(x: Array) -> Array:
    """Zeros with the gradient of x: added to another function, they give it a wrong one."""
    return x - stop(x)


def flax_default(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Flax's own initial weights: a normal distribution cut off, and biases of 0."""
    return (nn.initializers.lecun_normal() if len(shape) > 1 else nn.initializers.zeros)(key, shape, dtype)


TABLE, PIXELS, RELU = (weights, "LAYERS"), (model, "scale_pixels"), (nn, "relu")
CONV, POOL, DROPOUT = (layers, "conv2d"), (layers, "max_pool"), (layers, "dropout")
LOSS, MEAN, SGD = (train, "cross_entropy"), (train, "mean_loss"), (train, "sgd")

NONE = Fault("no mistake", None, POOL, lambda f: f)
FAULTS = (
    Fault("pixels scaled twice", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a) / 255),
    Fault("colour channels reversed", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a)[..., ::-1]),
    Fault("height and width exchanged", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a).swapaxes(1, 2)),
    Fault("conv kernel: height for width", "activations/conv1@random", TABLE, kernel("conv1", "w,h,i,o")),
    Fault("conv kernel: inputs for outputs", "activations/conv2@random", TABLE, kernel("conv2", "h,w,o,i")),
    Fault("dense kernel not transposed", "activations/fc4@random", TABLE, kernel("fc4", "o,i")),
    Fault("dense after flatten not permuted", "activations/fc3@random", TABLE, lambda _: {**LAYERS, "fc3": DENSE}),
    Fault("flatten in PyTorch's order", "activations/flat@random", (model, "flatten"),
          lambda f: lambda x: f(x.transpose(0, 3, 1, 2))),
    Fault("padding off by one", "activations/conv1@random", CONV,
          lambda f: lambda x, k, padding: f(x, k, ((2, 0), (2, 0)))),
    Fault("kernel turned round", "activations/conv1@random", CONV,
          lambda f: lambda x, k, padding: f(x, k[::-1, ::-1], padding)),
    Fault("products in bfloat16", "activations/conv1@random", CONV,
          lambda f: lambda x, k, padding: f(reduce_precision(x, 8, 7), reduce_precision(k, 8, 7), padding)),
    Fault("convolution's input gradient", "gradients/conv1.bias@random", CONV,
          lambda f: lambda x, k, p: f(stop(x), k, p) + gradient_of(f(x, stop(k[::-1, ::-1]), p))),
    Fault("convolution's kernel gradient", "gradients/conv2.weight@random", CONV,
          lambda f: lambda x, k, p: f(x, stop(k), p) + gradient_of(f(stop(x), jnp.roll(k, 1, axis=0), p))),
    Fault("ReLU's gradient at 0", "gradients/fc3.bias@ties", RELU, lambda _: lambda x: jnp.maximum(x, 0)),
    Fault("pooling with stride 1", "activations/pool2@random", POOL,
          lambda _: lambda x: nn.max_pool(x, (2, 2))[:, :16, :16]),
    Fault("pooling ties to all maxima", "gradients/conv2.weight@ties", POOL,
          lambda _: lambda x: x.reshape(len(x), 16, 2, 16, 2, -1).max(axis=(2, 4))),
    Fault("pooling ties to the last maximum", "gradients/conv2.weight@ties", POOL,
          lambda f: lambda x: f(x[:, ::-1, ::-1])[:, ::-1, ::-1]),
    Fault("dropout unscaled", "activations/drop1@training", DROPOUT,
          lambda f: lambda x, key, rate, rows: f(x, key, rate, rows) * (1 - rate)),
    Fault("dropout keeps what it should drop", "activations/drop1.mask@training", (layers, "keep_mask"),
          lambda f: lambda *a: ~f(*a)),
    Fault("dropout on at evaluation", "activations/drop1@random", (model.Dropout, "__call__"),
          lambda f: lambda self, x, key, rows: f(self, x, jax.random.key(0) if key is None else key, rows)),
    Fault("dropout off in training", "activations/drop1@training", DROPOUT, lambda _: lambda x, key, rate, rows: x),
    Fault("labels off by one", "outputs/loss@random", LOSS, lambda f: lambda x, y: f(x, (y + 1) % 10)),
    Fault("softmax twice", "outputs/loss@random", LOSS, lambda f: lambda x, y: f(jax.nn.softmax(x), y)),
    Fault("sum for mean", "outputs/loss@random", MEAN, lambda f: lambda x, batch: ((t := f(x, batch))[1][0], t[1])),
    Fault("mean over the filled batch", "outputs/loss@training", MEAN,
          lambda f: lambda x, batch: (f(x, batch)[0] * batch.real.mean(dtype=x.dtype), f(x, batch)[1])),
    Fault("wrong momentum", "step/conv1.weight@momentum", SGD,
          lambda f: lambda rate, momentum=0.0, **rest: f(rate, momentum and 0.99, **rest)),
    Fault("dampened momentum", "step/conv1.weight@momentum", SGD,
          lambda f: lambda rate, momentum=0.0, **rest: optax.chain(optax.scale(1 - momentum),
                                                                   f(rate, momentum, **rest))),
    Fault("learning rate inside the momentum", "step/conv1.weight@momentum", SGD,
          lambda f: lambda rate, *momentum, **rest: optax.chain(optax.scale(rate), f(1.0, *momentum, **rest))),
    Fault("Nesterov left out", "step/conv1.weight@nesterov", SGD,
          lambda f: lambda *rate, nesterov=False, **rest: f(*rate, **rest)),
    Fault("weight decay after the step", "step/conv1.weight.momentum@decay", SGD,
          lambda f: lambda rate, *momentum, weight_decay=0.0, **rest: optax.chain(
              f(rate, *momentum, **rest), optax.add_decayed_weights(-rate * weight_decay))),
    Fault("Flax's initial weights", "trajectory/conv1.weight.initial", (layers, "torch_uniform"),
          lambda _: lambda fan_in: flax_default),
    Fault("last batch dropped", "trajectory/conv1.weight", (train, "steps_per_epoch"),
          lambda _: lambda images, batch_size: images // batch_size),
    Fault("last batch filled with images", "trajectory/conv1.weight", (train, "take_batch"),
          lambda f: lambda *a: f(*a)._replace(real=jnp.ones(a[-1], bool))),
    Fault("last batch not evaluated", "evaluation/logits", (train, "predict_logits"),
          lambda f: lambda *a, batch_size: f(*a, batch_size=batch_size).at[-(len(a[2]) % batch_size) :].set(0)),
    Fault("accuracy over the filled batch", "evaluation/accuracy", (train, "metrics"),
          lambda f: lambda x, y: (f(x, y)[0], f(x, y)[1] * len(y) / (len(y) + -len(y) % 32))),
)  # fmt: skip
