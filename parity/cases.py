"""The inputs of the chain: random, real, and those that single out one difference between two networks."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import torch
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Bool, Key

from jaxcnn import layers, train
from jaxcnn.data import Split
from jaxcnn.model import CNN, Params, model_for
from parity import torch_model
from parity.torch_model import pixels, twin
from parity.weights import carry

SEED = 0
STEP = 3  # of the training case, and so of its dropout masks
DROPOUTS = {"drop1": (0, 0.3), "drop3": (1, 0.5)}  # index and rate, as the model has them
HUGE, TINY = np.float32(2.0**40), np.float32(2.0**-80)  # 1e12, 8e-25: products of two stay normal in float32


class Case(NamedTuple):
    """Weights, and a batch for them.

    params: float32.  images: uint8 pixels, or float32 what the network takes.  labels: uint8.
    real: which images count.  key: of the dropout masks, None where dropout is off.
    """

    name: str
    params: Params
    images: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    key: Key[Array, ""] | None = None


def dropout_masks(network: CNN, key: Key[Array, ""], images: int) -> dict[str, Bool[Array, "n ..."]]:
    """What dropout keeps in a batch of 32 x 32 images, by layer, channels last."""
    shapes = {"drop1": (images, 32, 32, network.channels), "drop3": (images, network.hidden)}
    return {
        name: layers.keep_mask(jax.random.fold_in(key, index), rate, shapes[name])
        for name, (index, rate) in DROPOUTS.items()
    }


def random_params(network: CNN) -> Params:
    """Float32 parameters as PyTorch initialises them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        state = torch_model.CNN(network.channels, network.hidden, network.classes).state_dict()
    arrays = carry({name: tensor.numpy() for name, tensor in state.items()}, "torch", "flax")
    return unflatten_dict(arrays, sep="/")


def cases(params: Params, split: Split, count: int) -> Iterator[Case]:
    """Cases of `count` images each. `params`: float32, for all but the random case and the last three."""
    rng = np.random.default_rng(SEED)
    network = model_for(params)
    labels = rng.integers(0, network.classes, count, dtype=np.uint8)
    real = np.ones(count, bool)
    noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    yield Case("random", random_params(network), noise, labels, real)
    yield Case("images", params, split.images[:count], split.labels[:count], real)
    key = train.random_stream(SEED, train.DROPOUT, STEP)
    partial = np.arange(count) < count * 5 // 8
    yield Case("training", params, split.images[-count:], split.labels[-count:], partial, key)
    bright = noise.astype(np.float32) / np.float32(255)
    for name, scale in (("huge", HUGE), ("tiny", TINY)):
        yield _contradicted(Case(name, _scaled(params, scale), bright * scale, labels, real))
    tied = _dyadic(params, rng)
    dots = (rng.integers(0, 3, noise.shape) / 4).astype(np.float32)
    planes = np.array(np.broadcast_to(dots[:, :1, :1], dots.shape))
    for name, images in (("zeros", np.zeros_like(dots)), ("flat", planes), ("ties", dots)):
        yield _contradicted(Case(name, tied, images, labels, real))


def _scaled(params: Params, scale: np.float32) -> Params:
    """With these biases, an image `scale` times brighter has activations `scale` times larger: ReLU is homogeneous."""
    return {name: {**layer, "bias": layer["bias"] * scale} for name, layer in params.items()}


def _dyadic(params: Params, rng: np.random.Generator) -> Params:
    """Weights for images of quarters, of so few bits that every sum is exact in float32, in any order of adding.

    So a tie is a tie in both frameworks: convolutions that are 0, windows with several positive maxima (on a flat image
    all of them, which rounding would break at random), and every fourth unit of `fc3`.
    """
    steps = {"conv1": 4, "conv2": 8, "fc3": 64, "fc4": 16}
    tied = {
        name: {kind: (rng.integers(-1, 2, leaf.shape) / steps[name]).astype(np.float32) for kind, leaf in layer.items()}
        for name, layer in params.items()
    }
    tied["fc3"]["kernel"][:, ::4] = tied["fc3"]["bias"][::4] = 0
    return tied


def _contradicted(case: Case) -> Case:
    """With the least likely classes for labels: saturated logits that agreed would have no gradient at all."""
    with torch.no_grad():
        logits = twin(case.params, torch.float64)(pixels(case.images, torch.float64))
    return case._replace(labels=logits.argmin(dim=1).numpy().astype(np.uint8))
