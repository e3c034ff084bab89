"""Cases of our own networks: random inputs, real ones, and some that single out one difference."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from jaxcnn import networks, train
from jaxcnn.data import Split
from jaxcnn.files import NamedArrays
from jaxcnn.layers import BatchKey
from jaxcnn.weights import Weights
from parity.pair import Case, as_flax, torch_forward
from parity.torch_trace import channels_last
from parity.twins.pairs import SEED, pair_of, pixels, twin
from parity.twins.speedrun_training import Augmented

STEP = 3  # of the training case, and so of its dropout masks
HUGE, TINY = np.float32(2.0**40), np.float32(2.0**-80)  # 1e12, 8e-25: products of two stay normal in float32


@torch.no_grad()
def feature_maps(
    weights: Weights, images: UInt8[np.ndarray, "n h w 3"], layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """Compute `jaxcnn.features.feature_maps` in PyTorch: [n, h, w, c] or [n, c] for each layer."""
    pair = pair_of(weights.network, "float64" if weights.dtype == "float64" else "float32")
    dtype = getattr(torch, pair.precision)
    case = Case("", pair.table.to_torch(weights.variables), images)
    _, trace = torch_forward(pair, case, dtype)
    outputs = {"input": channels_last(pixels(images, dtype)), **as_flax(trace)}
    return {name: outputs[name] for name in layers}


def torch_draws(network: networks.Network, count: int) -> list[NamedArrays]:
    """Draw a `state_dict` as PyTorch initialises it, `count` times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [{name: t.numpy() for name, t in twin(network).state_dict().items()} for _ in range(count)]


def drawn(network: networks.Network, images: UInt8[np.ndarray, "n 32 32 3"]) -> NamedArrays:
    """Draw a `state_dict` as PyTorch does, with the constants of these images if the network has any."""
    make = pair_of(network, "float64").torch_constants
    constants = make(images)[0] if make else {}
    return torch_draws(network, 1)[0] | {name: tensor.float().numpy() for name, tensor in constants.items()}


def cases(network: networks.Network, weights: NamedArrays, split: Split, count: int) -> Iterator[Case]:
    """Make cases of `count` images each. `weights` are for those of images.

    Except for speedrun in training, which uses only its constants. With weights as drawn, a channel goes through most
    layers unchanged, and GELU and batch norm in turn make it so flat that rounding chooses maxima in most images.
    """
    rng, pair = np.random.default_rng(SEED), pair_of(network, "float64")
    kind: Any = np.min_scalar_type(network.classes - 1)
    labels, real = rng.integers(0, network.classes, count, dtype=kind), np.ones(count, bool)
    noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    random = _random(network, rng) if pair.statistics else torch_draws(network, 1)[0]
    yield Case("random", random, noise, labels, real)
    yield Case("images", weights, split.images[:count], split.labels[:count], real)
    partial, key = np.arange(count) < count * 5 // 8, dropout_key(STEP, count)
    constants = [name for name, _ in pair.torch_module.named_buffers() if name not in pair.statistics]
    trained = random | {name: weights[name] for name in constants} if pair.statistics else weights
    yield Case("training", trained, split.images[-count:], split.labels[-count:], partial, key)
    if pair.statistics:
        shifts, mirrored = rng.integers(-2, 3, (count, 2)), rng.integers(0, 2, count) == 1
        augmented = Augmented(split.images[:count], shifts, mirrored, 19)
        yield Case("augmented", trained, augmented, split.labels[:count], real, key)
    bright = noise.astype(np.float32) / np.float32(255)
    scaled = () if pair.statistics else (("huge", HUGE), ("tiny", TINY))
    tied = (_exact if pair.statistics else _dyadic)(weights, rng)
    dots = (rng.integers(0, 3, noise.shape) / 4).astype(np.float32)
    for name, weights_of_case, images in (
        *((name, _scaled(weights, scale), bright * scale) for name, scale in scaled),
        ("zeros", tied, np.zeros_like(dots)),
        ("flat", tied, np.array(np.broadcast_to(dots[:, :1, :1], dots.shape))),
        ("ties", tied, dots),
    ):
        # Labels are the least likely classes: saturated logits that agreed with them would have no gradient at all.
        logits, _ = torch_forward(pair, Case(name, weights_of_case, images), torch.float64)
        yield Case(name, weights_of_case, images, logits.argmin(dim=1).numpy().astype(kind), real)


def dropout_key(step: int, images: int) -> BatchKey:
    """Make the key of the dropout masks of a step of training."""
    return BatchKey.of_batch(train.random_stream(SEED, train.DROPOUT, step), images)


def _scaled(weights: NamedArrays, scale: np.float32) -> NamedArrays:
    """Scale the biases: an image `scale` times brighter then has activations `scale` times larger."""
    return {name: array * scale if name.endswith("bias") else array for name, array in weights.items()}


def _dyadic(weights: NamedArrays, rng: np.random.Generator) -> NamedArrays:
    """Draw weights for images of quarters, of so few bits that every sum is exact in float32, in any order of adding.

    So a tie is a tie in both frameworks: convolutions that are 0, windows with several positive maxima (on a flat image
    all of them, which rounding would break at random), and every fourth unit of a dense layer that is not the last.
    """
    tied, last = {}, [name for name in weights if name.endswith("weight")][-1].rpartition(".")[0]
    for name, array in weights.items():
        layer = weights[f"{name.rpartition('.')[0]}.weight"]
        steps = 2 ** round(np.log2(layer[0].size) / 2)  # to a unit: the more a layer adds up, the smaller its weights
        tied[name] = (rng.integers(-1, 2, array.shape) / steps).astype(np.float32)
        if layer.ndim == 2 and not name.startswith(last):
            tied[name][::4] = 0
    return tied


def _random(network: networks.Network, rng: np.random.Generator) -> NamedArrays:
    """Draw a `state_dict` of which nothing is 0 or 1; variances so large that no channel is all where GELU is 0."""
    return {
        name: (rng.uniform(0.5, 1.5, array.shape) * (8 if name.endswith("var") else 1)
               if name.endswith(("deviation", "var"))
               else rng.normal(0, array[0].size ** -0.5, array.shape)).astype(np.float32)
        for name, array in torch_draws(network, 1)[0].items()
    }  # fmt: skip


def _exact(weights: NamedArrays, rng: np.random.Generator) -> NamedArrays:
    """Draw weights of speedrun for images of quarters, with which GELU and batch norm are exact as well.

    What GELU is given is 0, or so far from it that it is x or 0. To a variance of 2**40 the epsilon of 1e-12 adds
    nothing; its root, by which batch norm divides, is a factor of the kernels. Each unit adds up few numbers, about
    eight, so that what seven layers make of them fits into 24 bits. Every fourth channel of the last group sees
    nothing: all its maxima tie.
    """
    least, root = 64, 2**20
    scales = {"normalise.mean": 0, "whiten.weight": 4 * least, "head.weight": 1}
    drawn = {}
    for name, array in weights.items():
        few = rng.integers(-1, 2, array.shape) * (rng.random(array.shape) < 12 / array[0].size)
        last = least * root if name.endswith("mean") else least if name.endswith("bias") else root
        drawn[name] = (few * scales.get(name, last)).astype(np.float32)
        if name in ("conv5.weight", "conv7.weight"):
            drawn[name][::4] = 0
        if name.endswith(("var", "deviation")):
            drawn[name] = np.full_like(array, root**2 if name.endswith("var") else 1)
    return drawn
