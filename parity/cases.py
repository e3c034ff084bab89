"""What is compared: a network, in a precision, with inputs random, real, and such as single out one difference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Key

from jaxcnn import train
from jaxcnn.data import Dataset, Split
from jaxcnn.files import NamedArrays
from jaxcnn.model import CNN, Params, model_for
from parity import torch_model
from parity.compare import Check, judge
from parity.torch_model import pixels, twin
from parity.weights import as_params

SEED = 0
STEP = 3  # of the training case, and so of its dropout masks
HUGE, TINY = np.float32(2.0**40), np.float32(2.0**-80)  # 1e12, 8e-25: products of two stay normal in float32


@dataclass(frozen=True)
class Trial:
    """A network to compare in both frameworks, and how much is computed.

    precision: `float32` or `float64`, of JAX's side.  params: float32, to start from.
    subset, batch: 500 images in batches of 8 make epochs of 63 steps, the last of 4 images.
    stretch: steps of training that are compared at once. In float32 rounding decides otherwise than float64 somewhere
    in 10 to 20 % of stretches of 4 steps, in 0 to 50 % of 10 (four seeds, 70 steps).
    """

    precision: str
    params: Params
    data: Dataset
    images: int = 8
    subset: int = 500
    batch: int = 8
    steps: int = 200
    stretch: int = 4
    evaluated: int = 100
    cases: tuple[str, ...] = ("random", "images", "training", "huge", "tiny", "zeros", "flat", "ties")

    @property
    def network(self) -> CNN:
        """The network, computing in its precision."""
        return model_for(self.params).clone(dtype=self.precision, param_dtype=self.precision)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of PyTorch's side: the truth, and float32 where its own error is the measure of JAX's."""
        return [torch.float64] + [torch.float32] * (self.precision == "float32")

    def cast(self, params: Params) -> Params:
        """Parameters on the device, in the precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.precision), params)

    def check(self, name: str, error: float, bound: float) -> Check:
        """A comparison by an error of its own kind."""
        return Check(f"{self.precision}/{name}", float(error), bound)

    def judge(
        self, link: str, ours: NamedArrays, others: Sequence[NamedArrays], suffix: str = "", **options: Any
    ) -> Iterator[Check]:
        """`compare.judge` of each of JAX's arrays, by name, against PyTorch's in `dtypes`."""
        for name in others[0]:
            theirs: list[Any] = [other[name] for other in others]
            yield judge(f"{self.precision}/{link}/{name}{suffix}", ours[name], *theirs, **options)


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


def torch_draws(network: CNN, count: int) -> list[dict[str, torch.Tensor]]:
    """A `state_dict` as PyTorch initialises it, `count` times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        widths = network.channels, network.hidden, network.classes
        return [torch_model.CNN(*widths).state_dict() for _ in range(count)]


def random_params(network: CNN) -> Params:
    """Float32 parameters as PyTorch initialises them."""
    return as_params(torch_draws(network, 1)[0])


def cases(params: Params, split: Split, count: int) -> Iterator[Case]:
    """Cases of `count` images each. `params`: float32, for all but the random case and the last three."""
    rng, network = np.random.default_rng(SEED), model_for(params)
    labels = rng.integers(0, network.classes, count, dtype=np.uint8)
    real = np.ones(count, bool)
    noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    yield Case("random", random_params(network), noise, labels, real)
    yield Case("images", params, split.images[:count], split.labels[:count], real)
    key = train.random_stream(SEED, train.DROPOUT, STEP)
    partial = np.arange(count) < count * 5 // 8
    yield Case("training", params, split.images[-count:], split.labels[-count:], partial, key)
    bright = noise.astype(np.float32) / np.float32(255)
    tied = _dyadic(params, rng)
    dots = (rng.integers(0, 3, noise.shape) / 4).astype(np.float32)
    for name, weights, images in (
        ("huge", _scaled(params, HUGE), bright * HUGE),
        ("tiny", _scaled(params, TINY), bright * TINY),
        ("zeros", tied, np.zeros_like(dots)),
        ("flat", tied, np.array(np.broadcast_to(dots[:, :1, :1], dots.shape))),
        ("ties", tied, dots),
    ):
        with torch.no_grad():
            logits = twin(weights, torch.float64)(pixels(images, torch.float64))
        # Labels are the least likely classes: saturated logits that agreed with them would have no gradient at all.
        yield Case(name, weights, images, logits.argmin(dim=1).numpy().astype(np.uint8), real)


def _scaled(params: Params, scale: np.float32) -> Params:
    """With these biases, an image `scale` times brighter has activations `scale` times larger: ReLU is homogeneous."""
    return {name: {**layer, "bias": layer["bias"] * scale} for name, layer in params.items()}


def _dyadic(params: Params, rng: np.random.Generator) -> Params:
    """Weights for images of quarters, of so few bits that every sum is exact in float32, in any order of adding.

    So a tie is a tie in both frameworks: convolutions that are 0, windows with several positive maxima (on a flat image
    all of them, which rounding would break at random), and every fourth unit of `fc3`.
    """
    steps = {"conv1": 4, "conv2": 8, "fc3": 64}
    tied = {
        name: {k: (rng.integers(-1, 2, p.shape) / steps.get(name, 16)).astype(np.float32) for k, p in layer.items()}
        for name, layer in params.items()
    }
    tied["fc3"]["kernel"][:, ::4] = tied["fc3"]["bias"][::4] = 0
    return tied
