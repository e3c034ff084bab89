"""Our own networks as pairs, and their cases: inputs random, real, and such as single out one difference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, UInt8

from jaxcnn import networks, recipe, train
from jaxcnn.data import Split
from jaxcnn.files import NamedArrays
from jaxcnn.layers import DropoutKey, scale_pixels
from jaxcnn.weights import Weights
from parity.files import table_of
from parity.links import STEP_RATE
from parity.pair import Case, Pair, as_flax, torch_forward
from parity.torch_trace import channels_first, channels_last
from parity.twins import tutorial

SEED = 0
STEP = 3  # of the training case, and so of its dropout masks
HUGE, TINY = np.float32(2.0**40), np.float32(2.0**-80)  # 1e12, 8e-25: products of two stay normal in float32
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
}
TWINS: dict[str, Any] = {"tutorial": tutorial.CNN}
RECIPES: dict[str, Any] = {"tutorial": recipe.tutorial}


@dataclass(frozen=True, eq=False)
class TrainedPair(Pair):
    """A network of ours, its twin and its training."""

    make_recipe: Callable[..., recipe.Recipe] = recipe.tutorial  # (network, learning rate, momentum) -> recipe
    draw: Callable[..., Any] = networks.initial_variables
    make_train_steps: Callable[..., Any] = train.make_train_steps
    predict_logits: Callable[..., Any] = train.predict_logits
    metrics: Callable[..., Any] = train.metrics


def pair_of(network: networks.Network, precision: str) -> TrainedPair:
    """Make the pair of a network of ours and its PyTorch twin."""
    with torch.device("meta"):  # the twin's own weights are not used
        torch_module = twin(network)
    return TrainedPair(
        torch_module=torch_module,
        flax_module=network.clone(dtype=precision, param_dtype=precision),
        precision=precision,
        table=table_of(network),
        torch_input=lambda images, dtype: (pixels(images, dtype),),
        flax_input=lambda images, dtype: (flax_pixels(images, dtype),),
        apply=lambda module, variables, x, key: (module.apply(variables, *x, key), variables),
        torch_loss=mean_loss,
        flax_loss=recipe.mean_loss,
        optimizers={kind: (options, recipe.sgd(STEP_RATE, **options)) for kind, options in OPTIMIZERS.items()},
        output="logits",
        make_recipe=RECIPES[networks.describe(network)["name"]],
    )


def twin(network: networks.Network) -> torch.nn.Module:
    """Make the PyTorch twin of a network, with weights that PyTorch draws."""
    fields = networks.describe(network)
    return TWINS[fields.pop("name")](**fields)


def pixels(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Give images as PyTorch takes them: uint8 divided by 255, as `ToTensor` does."""
    tensor = channels_first(images)
    return tensor.to(dtype) / 255 if tensor.dtype == torch.uint8 else tensor.to(dtype)


def flax_pixels(images: np.ndarray, dtype: str) -> Array:
    """Give images as Flax takes them."""
    array = jnp.asarray(images)
    return scale_pixels(array, dtype) if array.dtype == np.uint8 else array.astype(dtype)


def mean_loss(logits: torch.Tensor, labels: np.ndarray, real: np.ndarray) -> torch.Tensor:
    """Compute the mean cross entropy of the images that are real."""
    return torch.nn.functional.cross_entropy(logits[real], torch.from_numpy(labels[real]).long())


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


def cases(network: networks.Network, weights: NamedArrays, split: Split, count: int) -> Iterator[Case]:
    """Make cases of `count` images each. `weights` are for all but the random case and the last three."""
    rng, pair = np.random.default_rng(SEED), pair_of(network, "float64")
    labels, real = rng.integers(0, network.classes, count, dtype=np.uint8), np.ones(count, bool)
    noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    yield Case("random", torch_draws(network, 1)[0], noise, labels, real)
    yield Case("images", weights, split.images[:count], split.labels[:count], real)
    partial = np.arange(count) < count * 5 // 8
    yield Case("training", weights, split.images[-count:], split.labels[-count:], partial, dropout_key(STEP, count))
    bright, tied = noise.astype(np.float32) / np.float32(255), _dyadic(weights, rng)
    dots = (rng.integers(0, 3, noise.shape) / 4).astype(np.float32)
    for name, weights_of_case, images in (
        ("huge", _scaled(weights, HUGE), bright * HUGE),
        ("tiny", _scaled(weights, TINY), bright * TINY),
        ("zeros", tied, np.zeros_like(dots)),
        ("flat", tied, np.array(np.broadcast_to(dots[:, :1, :1], dots.shape))),
        ("ties", tied, dots),
    ):
        # Labels are the least likely classes: saturated logits that agreed with them would have no gradient at all.
        logits, _ = torch_forward(pair, Case(name, weights_of_case, images), torch.float64)
        yield Case(name, weights_of_case, images, logits.argmin(dim=1).numpy().astype(np.uint8), real)


def dropout_key(step: int, images: int) -> DropoutKey:
    """Make the key of the dropout masks of a step of training."""
    return DropoutKey.of_batch(train.random_stream(SEED, train.DROPOUT, step), images)


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
