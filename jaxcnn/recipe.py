"""Recipes of training: all that `train` does with a network, as one value that a configuration names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, UInt, UInt8

from jaxcnn import augment, cpu
from jaxcnn.config import Config
from jaxcnn.layers import BatchKey, cross_entropy, scale_pixels, widened
from jaxcnn.networks import Network, Variables
from jaxcnn.networks import speedrun as speedrun_network
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.networks.tutorial import CNN, forward
from jaxcnn.optimizers import linear, muon, sgd

# Images keep each size until a percentage of the epochs is over; CIFAR-10's own is 32 pixels. The first layer, without
# padding, makes an odd size even, so that pooling leaves nothing out: 27 costs 7 % less than 28.
GROWTH = ((16, 19), (36, 23), (58, 27), (100, 32))
# The bias of the whitening is trained on images up to this size. Later it gets no gradient, which saves the largest
# convolution a third of its work; airbench94 does so after three epochs of eight.
WHITENING_SIZE = 23


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    forward: (variables, uint8 images, dropout key) -> a training batch's logits, and the new `TrainState.model_state`;
        with a size too if there are `sizes`.
    loss: (logits, labels, real) -> what is minimised.
    schedule: step -> learning rate, which is also the optimizer's.
    augment: (batch, the step's key, the training's key, epoch) -> the batch's images as they are trained on.
    constants: training images -> the network's variables that are computed from them.
    sizes: of the images, epoch by epoch; none: as they are.
    """

    network: Network
    forward: Callable[..., tuple[Float[Array, "b classes"], Variables]]
    loss: Callable[..., Float[Array, ""]]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    augment: Callable[..., UInt8[Array, "b h w c"]] = lambda batch, *_: batch.images
    constants: Callable[[Any], Variables] = lambda images: {}
    sizes: tuple[int, ...] = ()

    def size(self, epoch: int) -> int | None:
        """Give the size of an epoch's images, from 0; None if it is their own. The last holds for all later ones."""
        return self.sizes[min(epoch, len(self.sizes) - 1)] if self.sizes else None


def mean_loss(logits: Float[Array, "b classes"], labels: UInt[Array, "b"], real: Bool[Array, "b"]) -> Float[Array, ""]:
    """Compute the mean cross entropy of the images that are real, in nats."""
    losses = jnp.where(real, cross_entropy(logits, labels), 0)
    return losses.sum(dtype=losses.dtype) / real.sum(dtype=losses.dtype)


def smoothed_loss(
    logits: Float[Array, "b classes"], labels: UInt[Array, "b"], real: Bool[Array, "b"], smoothing: float
) -> Float[Array, ""]:
    """Compute the summed cross entropy of the images that are real, in nats; `smoothing` is spread over all classes.

    PyTorch's `cross_entropy(..., label_smoothing=smoothing, reduction="sum")`.
    """
    logits = widened(logits)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
    losses = jnp.where(real, optax.softmax_cross_entropy(logits, targets), 0)
    return losses.sum(dtype=losses.dtype)


def tutorial(network: CNN, learning_rate: float, momentum: float = 0.0) -> Recipe:
    """Make the tutorial's recipe: mean cross entropy, SGD with momentum, a constant learning rate."""
    return Recipe(
        network=network,
        forward=partial(forward, network),
        loss=mean_loss,
        optimizer=sgd(learning_rate, momentum),
        schedule=optax.constant_schedule(learning_rate),
    )


def _tutorial(config: Config, classes: int, batch_size: int, per_epoch: int) -> Recipe:
    network = CNN(*config.widths, classes, dtype=jnp.dtype(config.precision))
    return tutorial(network, config.learning_rate, config.momentum)


def growing(epochs: int) -> tuple[int, ...]:
    """Give the size of the images of each epoch: small at first, which costs less, full size in the last half.

    An epoch at 19 pixels costs a third of one at 32, so 14 epochs cost as much as 10 at full size.
    """
    return tuple(next(size for part, size in GROWTH if 100 * epoch <= part * epochs) for epoch in range(1, epochs + 1))


def whitening_epochs(epochs: int) -> int:
    """Count the epochs in which the bias of the whitening is trained."""
    return sum(size <= WHITENING_SIZE for size in growing(epochs))


def speedrun(
    network: Speedrun, learning_rate: float, momentum: float, batch_size: int, per_epoch: int, epochs: int
) -> Recipe:
    """Make the recipe of speedrun for epochs of `per_epoch` steps. learning_rate: of the convolutions."""
    steps, whitening = epochs * per_epoch, whitening_epochs(epochs) * per_epoch
    kinds = speedrun_optimizers(learning_rate, momentum, batch_size, steps, whitening)
    return Recipe(
        network=network,
        forward=partial(resized_forward, network),
        loss=partial(smoothed_loss, smoothing=0.2),
        optimizer=by_kind(kinds),
        schedule=linear(learning_rate, steps),
        augment=translated_and_flipped,
        constants=speedrun_network.constants,
        sizes=growing(epochs),
    )


def speedrun_optimizers(
    learning_rate: float, momentum: float, batch_size: int, steps: int, whitening: int
) -> dict[str, optax.GradientTransformation]:
    """Make the optimizers of speedrun, by kind of parameter. whitening: steps that the bias of the whitening takes."""
    decay = 1e-6 * batch_size

    def others(rate: float, steps: int) -> optax.GradientTransformation:
        return sgd(linear(rate, steps), 0.85, nesterov=True, weight_decay=decay / rate)

    return {
        "convolution": muon(linear(learning_rate, steps), momentum),
        "bias": others(0.053, steps),
        "whiten": optax.conditionally_mask(others(0.053, whitening), lambda step: step < whitening),
        "head": others(0.67, steps),
    }


def by_kind(kinds: dict[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Give each parameter of speedrun the optimizer of its kind."""

    def kind(path: Any, _: Array) -> str:
        layer, name = (key.key for key in path)
        return layer if layer in ("whiten", "head") else {"kernel": "convolution", "bias": "bias"}[name]

    return optax.partition(kinds, partial(jax.tree_util.tree_map_with_path, kind))


def resized_forward(
    network: Network, variables: Variables, images: UInt8[Array, "n h w 3"], key: BatchKey, size: int | None = None
) -> tuple[Float[Array, "n classes"], Variables]:
    """Compute the logits of a training batch resized to `size` pixels, and the running statistics.

    size: None for images as they are, and a gradient of all parameters.
    """

    def features(variables: Variables, images: Array) -> Array:
        scaled = scale_pixels(images, network.param_dtype)
        params = variables["params"]
        if size is not None:
            scaled = augment.resized(scaled, size)
            if size > WHITENING_SIZE:
                params = params | {"whiten": lax.stop_gradient(params["whiten"])}
        return network.apply(variables | {"params": params}, scaled, method="features")

    kept_place = jax.checkpoint_policies.save_only_these_names("place")
    x = cpu.in_chunks(jax.checkpoint(features, policy=kept_place))(variables, images)
    logits, kept = network.apply(variables, x, key, mutable=["batch_stats"], method="classify")
    return logits, {name: tree for name, tree in variables.items() if name != "params"} | dict(kept)


def translated_and_flipped(batch: Any, key: Array, flip_key: Array, epoch: Array) -> Array:
    """Move each image by up to 2 pixels, and mirror it in every other epoch."""
    images = augment.shifted(batch.images, augment.random_shifts(key, batch.indices, 2), 2)
    return augment.flipped(images, augment.alternating(flip_key, batch.indices, epoch))


def _speedrun(config: Config, classes: int, batch_size: int, per_epoch: int) -> Recipe:
    network = Speedrun(*config.widths, classes, dtype=jnp.dtype(config.precision))
    return speedrun(network, config.learning_rate, config.momentum, batch_size, per_epoch, config.epochs)


RECIPES: dict[str, Callable[[Config, int, int, int], Recipe]] = {
    "tutorial": _tutorial,
    "speedrun": _speedrun,
    "speedrun-large": _speedrun,
}


def recipe_for(config: Config, classes: int = 10, batch_size: int = 1, per_epoch: int = 1) -> Recipe:
    """Make the recipe that a configuration names.

    classes: how many the data set has.  per_epoch: steps.
    """
    return RECIPES[config.recipe](config, classes, batch_size, per_epoch)
