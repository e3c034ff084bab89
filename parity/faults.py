"""The negative controls: classic mistakes, each made on purpose, and where the chain has to notice it first."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from jaxcnn import layers, model, train
from jaxcnn.data import Dataset
from jaxcnn.model import CNN
from parity import chain, weights
from parity.cases import random_params
from parity.subject import Size, Subject
from parity.trajectory import initial
from parity.weights import DENSE, LAYERS, Side

SIZE = Size(images=4, subset=22, steps=4, stretch=2, evaluated=40, cases=("random", "training", "ties"))
WIDTHS = (4, 10, 10)  # a square fc4, so that its kernel can be transposed unnoticed by its shape
PADDING = ((1, 1), (1, 1))


@dataclass(frozen=True)
class Fault:
    """A mistake.

    caught_by: the first check that fails, without the precision.
    places: the functions that are replaced, as (module, name).  wrong: what replaces them, given the right one.
    """

    name: str
    caught_by: str
    places: tuple[tuple[Any, str], ...]
    wrong: Callable[[Any], Any]


def narrow(data: Dataset) -> Subject:
    """What the mistakes are made on: a narrow network, in float64."""
    return Subject("float64", random_params(CNN(*WIDTHS)), data, SIZE)


def catch(fault: Fault | None, subject: Subject) -> str | None:
    """The name of the first check that fails with a fault (or without one), None where none does.

    Nothing is jitted, or it is forgotten: what was compiled without the mistake would be used with it.
    """
    with injected(fault) if fault else contextlib.nullcontext():
        with jax.disable_jit():
            first = next((check.name for check in chain.checks(subject, []) if not check.passed), None)
        if first:
            return first
        jax.clear_caches()
        first = next((check.name for check in initial(subject) if not check.passed), None)
        jax.clear_caches()
        return first


@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Make a mistake for a while."""
    with contextlib.ExitStack() as stack:
        for module, name in fault.places:
            stack.enter_context(mock.patch.object(module, name, fault.wrong(getattr(module, name))))
        yield


def run(subject: Subject) -> list[dict[str, Any]]:
    """Every control: what caught it, and whether that is what should have."""
    found = []
    for fault in (None, *FAULTS):
        caught = catch(fault, subject)
        expected = fault and f"{subject.precision}/{fault.caught_by}"
        name = fault.name if fault else "no mistake"
        found.append({"name": name, "caught_by": caught, "expected": expected, "passed": caught == expected})
    return found


def kernel(layer: str, axes: str) -> Callable[[Any], Any]:
    """The table with a kernel whose axes are taken for others."""
    entry, bias = LAYERS[layer]
    return lambda _: {**LAYERS, layer: (entry._replace(flax=Side("kernel", axes)), bias)}


def conv(change: Callable[..., Any]) -> Callable[[Any], Any]:
    """A convolution with its operands or its padding changed."""
    return lambda right: lambda x, k, padding: right(*(new := change(x, k))[:2], new[2] if len(new) > 2 else padding)


def coarse(x: Array) -> Array:
    """Rounded to bfloat16."""
    return x.astype(jnp.bfloat16).astype(x.dtype)


def conv_gradient(wrong_dx: bool) -> Callable[[Any], Any]:
    """A right convolution with a wrong gradient: the kernel not turned round for dx, or shifted in its own."""

    @jax.custom_vjp
    def convolve(x: Array, k: Array) -> Array:
        return layers.stock_conv(x, k, PADDING)

    def backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        dx, dk = jax.vjp(lambda x, k: layers.stock_conv(x, k, PADDING), *saved)[1](dy)
        return (layers.stock_conv(dy, saved[1].transpose(0, 1, 3, 2), PADDING), dk) if wrong_dx else (
            dx, jnp.roll(dk, 1, axis=0))  # fmt: skip

    convolve.defvjp(lambda x, k: (convolve(x, k), (x, k)), backward)
    return lambda _: lambda x, k, padding: convolve(x, k)


def windows(x: Array) -> Array:
    """The four corners of each pooling window, stacked."""
    return jnp.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def last_maximum(x: Array) -> Array:
    """Pooling whose gradient goes to the last of equal maxima."""
    corners = windows(x)[::-1]
    return jnp.take_along_axis(corners, corners.argmax(axis=0)[None], axis=0)[0]


def stride_1(x: Array) -> Array:
    """Pooling with stride 1, as Flax's is unless told; cut to the right shape."""
    pooled = lax.reduce_window(x, jnp.asarray(-jnp.inf, x.dtype), lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    return pooled[:, : x.shape[1] // 2, : x.shape[2] // 2]


class AlwaysDropout(nn.Module):
    """Dropout that is on at evaluation too."""

    rate: float
    index: int

    @nn.compact
    def __call__(self, x: Array, key: Any, rows: Any = None) -> Array:
        """X, some of it dropped."""
        key = jax.random.key(0) if key is None else key
        return layers.dropout(x, jax.random.fold_in(key, self.index), self.rate, rows)


def flax_default(fan_in: int) -> Any:
    """Flax's own initial weights: a normal distribution cut off, and biases of 0."""
    normal = nn.initializers.lecun_normal()
    return lambda key, shape, dtype: normal(key, shape, dtype) if len(shape) > 1 else jnp.zeros(shape, dtype)


def sgd(change: Callable[..., Any]) -> Callable[[Any], Any]:
    """`train.sgd` with every option at hand."""
    return lambda right: (
        lambda learning_rate, momentum=0.0, nesterov=False, weight_decay=0.0: change(
            right, learning_rate, momentum, nesterov, weight_decay
        )
    )


def own_momentum(before: Callable[..., float], after: Callable[..., float]) -> Callable[[Any], Any]:
    """Momentum m = momentum m + before * g; p -= after * m, where there is any."""

    def change(right: Any, rate: float, momentum: float, nesterov: bool, decay: float) -> Any:
        if not momentum:
            return right(rate, momentum, nesterov, decay)
        return optax.chain(
            optax.scale(before(rate, momentum)), optax.trace(momentum, nesterov), optax.scale(-after(rate, momentum))
        )

    return sgd(change)


def decay_afterwards(right: Any, rate: float, momentum: float, nesterov: bool, decay: float) -> Any:
    """Weight decay past the momentum, as AdamW has it."""
    return optax.chain(right(rate, momentum, nesterov), optax.add_decayed_weights(-rate * decay))


def all_real(take: Any) -> Any:
    """What fills up the last batch counts as images."""

    def wrong(*arguments: Any) -> train.Batch:
        batch = take(*arguments)
        return batch._replace(real=jnp.ones_like(batch.real))

    return wrong


def whole_batches_only(predict: Any) -> Any:
    """Evaluation that leaves the last, partial batch out."""

    def wrong(network: CNN, params: Any, images: Array, *, batch_size: int) -> Array:
        logits = predict(network, params, images, batch_size=batch_size)
        return logits.at[len(images) // batch_size * batch_size :].set(0)

    return wrong


def padded_accuracy(metrics: Any) -> Any:
    """Accuracy over batches of 32 filled up."""
    return lambda logits, labels: (
        (found := metrics(logits, labels))[0],
        found[1] * len(labels) / (-(-len(labels) // 32) * 32),
    )


TABLE, POOL, DROPOUT = ((weights, "LAYERS"),), ((layers, "max_pool"),), ((layers, "dropout"),)
CONVOLUTION = ((layers, "conv2d"),)
PIXELS = ((model, "scale_pixels"), (train, "scale_pixels"))
RELU, LOSS, MEAN, SGD = ((nn, "relu"),), ((train, "cross_entropy"),), ((train, "mean_loss"),), ((train, "sgd"),)

FAULTS = (
    Fault("pixels scaled twice", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a) / 255),
    Fault("colour channels reversed", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a)[..., ::-1]),
    Fault("height and width exchanged", "activations/input@random", PIXELS, lambda f: lambda *a: f(*a).swapaxes(1, 2)),
    Fault("conv kernel: height for width", "activations/conv1@random", TABLE, kernel("conv1", "w,h,i,o")),
    Fault("conv kernel: inputs for outputs", "activations/conv2@random", TABLE, kernel("conv2", "h,w,o,i")),
    Fault("dense kernel not transposed", "activations/fc4@random", TABLE, kernel("fc4", "o,i")),
    Fault("dense after flatten not permuted", "activations/fc3@random", TABLE, lambda _: {**LAYERS, "fc3": DENSE}),
    Fault("flatten in PyTorch's order", "activations/flat@random", ((model, "flatten"),),
          lambda _: lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1)),
    Fault("padding off by one", "activations/conv1@random", CONVOLUTION, conv(lambda x, k: (x, k, ((2, 0), (2, 0))))),
    Fault("kernel turned round", "activations/conv1@random", CONVOLUTION, conv(lambda x, k: (x, k[::-1, ::-1]))),
    Fault("products in bfloat16", "activations/conv1@random", CONVOLUTION, conv(lambda x, k: (coarse(x), coarse(k)))),
    Fault("convolution's input gradient", "gradients/conv1.bias@random", CONVOLUTION, conv_gradient(wrong_dx=True)),
    Fault("convolution's kernel gradient", "gradients/conv2.weight@random", CONVOLUTION, conv_gradient(wrong_dx=False)),
    Fault("ReLU's gradient at 0", "gradients/fc3.bias@ties", RELU, lambda _: lambda x: jnp.maximum(x, 0)),
    Fault("pooling with stride 1", "activations/pool2@random", POOL, lambda _: stride_1),
    Fault("pooling ties to all maxima", "gradients/conv2.weight@ties", POOL,
          lambda _: lambda x: windows(x).max(axis=0)),
    Fault("pooling ties to the last maximum", "gradients/conv2.weight@ties", POOL, lambda _: last_maximum),
    Fault("dropout unscaled", "activations/drop1@training", DROPOUT,
          lambda f: lambda x, key, rate, rows: f(x, key, rate, rows) * (1 - rate)),
    Fault("dropout keeps what it should drop", "activations/drop1.mask@training", ((layers, "keep_mask"),),
          lambda f: lambda *a: ~f(*a)),
    Fault("dropout on at evaluation", "activations/drop1@random", ((model, "Dropout"),), lambda _: AlwaysDropout),
    Fault("dropout off in training", "activations/drop1@training", DROPOUT, lambda _: lambda x, key, rate, rows: x),
    Fault("labels off by one", "outputs/loss@random", LOSS, lambda f: lambda x, y: f(x, (y + 1) % 10)),
    Fault("softmax twice", "outputs/loss@random", LOSS, lambda f: lambda x, y: f(jax.nn.softmax(x), y)),
    Fault("sum for mean", "outputs/loss@random", MEAN, lambda f: lambda x, batch: ((t := f(x, batch))[1][0], t[1])),
    Fault("mean over the filled batch", "outputs/loss@training", MEAN,
          lambda f: lambda x, batch: (f(x, batch)[0] * batch.real.mean(dtype=x.dtype), f(x, batch)[1])),
    Fault("wrong momentum", "step/conv1.weight@momentum", SGD,
          sgd(lambda f, rate, momentum, *rest: f(rate, momentum and 0.99, *rest))),
    Fault("dampened momentum", "step/conv1.weight@momentum", SGD,
          own_momentum(lambda rate, momentum: 1 - momentum, lambda rate, momentum: rate)),
    Fault("learning rate inside the momentum", "step/conv1.weight@momentum", SGD,
          own_momentum(lambda rate, momentum: rate, lambda rate, momentum: 1.0)),
    Fault("Nesterov left out", "step/conv1.weight@nesterov", SGD,
          sgd(lambda f, rate, momentum, nesterov, decay: f(rate, momentum, False, decay))),
    Fault("weight decay after the step", "step/conv1.weight.momentum@decay", SGD, sgd(decay_afterwards)),
    Fault("Flax's initial weights", "trajectory/conv1.weight.initial", ((layers, "torch_uniform"),),
          lambda _: flax_default),
    Fault("last batch dropped", "trajectory/conv1.weight", ((train, "steps_per_epoch"),),
          lambda _: lambda images, batch_size: images // batch_size),
    Fault("last batch filled with images", "trajectory/conv1.weight", ((train, "take_batch"),), all_real),
    Fault("last batch not evaluated", "evaluation/logits", ((train, "predict_logits"),), whole_batches_only),
    Fault("accuracy over the filled batch", "evaluation/accuracy", ((train, "metrics"),), padded_accuracy),
)  # fmt: skip
