"""Recipes of training: all that `train` does with a network, as one value that a configuration names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, UInt8

from jaxcnn.config import Config
from jaxcnn.layers import cross_entropy
from jaxcnn.networks import Network, Variables
from jaxcnn.networks.tutorial import CNN, forward


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    forward: (variables, uint8 images, dropout key) -> a training batch's logits, and the new `TrainState.model_state`.
    loss: (logits, labels, real) -> what is minimised.
    schedule: step -> learning rate, which is also the optimizer's.
    """

    network: Network
    forward: Callable[..., tuple[Float[Array, "b classes"], Variables]]
    loss: Callable[..., Float[Array, ""]]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def mean_loss(logits: Float[Array, "b classes"], labels: UInt8[Array, "b"], real: Bool[Array, "b"]) -> Float[Array, ""]:
    """Compute the mean cross entropy of the images that are real, in nats."""
    losses = jnp.where(real, cross_entropy(logits, labels), 0)
    return losses.sum(dtype=losses.dtype) / real.sum(dtype=losses.dtype)


def sgd(
    learning_rate: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Make `torch.optim.SGD`: g += weight_decay p; m = momentum m + g; p -= learning_rate m (Nesterov: g + momentum m).

    Weight decay goes into the gradient first, as in PyTorch; `optax.sgd` alone has none.
    """
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.sgd(learning_rate, momentum or None, nesterov))


def tutorial(network: CNN, learning_rate: float, momentum: float = 0.0, devices: int = 1) -> Recipe:
    """Make the tutorial's recipe: mean cross entropy, SGD with momentum, a constant learning rate."""
    return Recipe(
        network=network,
        forward=partial(forward, network, devices=devices),
        loss=mean_loss,
        optimizer=sgd(learning_rate, momentum),
        schedule=optax.constant_schedule(learning_rate),
    )


def _tutorial(config: Config, classes: int, devices: int) -> Recipe:
    network = CNN(config.channels, config.hidden, classes, dtype=jnp.dtype(config.precision))
    return tutorial(network, config.learning_rate, config.momentum, devices)


RECIPES: dict[str, Callable[[Config, int, int], Recipe]] = {"tutorial": _tutorial}


def recipe_for(config: Config, classes: int = 10, devices: int = 1) -> Recipe:
    """Make the recipe that a configuration names.

    classes: how many the data set has.  devices: how many share a batch.
    """
    return RECIPES[config.recipe](config, classes, devices)
