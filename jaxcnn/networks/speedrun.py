"""A network for accuracy at little compute, after airbench94 (Jordan 2024, arXiv 2404.00498)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxcnn import layers
from jaxcnn.augment import View
from jaxcnn.layers import BatchKey
from jaxcnn.networks.modules import BatchNorm, Conv, Dense, Function, Normalise, Whiten

IMAGES = 5_000  # that the first layer's kernel is computed from
EPSILON = 5e-3  # added to the variances of patches: what varies less is noise
ROUNDING = 1e-6  # a variance below that of 8-bit pixels' rounding, 1e-5: nothing varies
GROUPS = ((1, 2), (3, 4), (5, 6, 7))  # of convolutions; a group starts with pooling and ends with a residual

# The image itself has weight 1/2, two shifts of it 1/4 each; each is mirrored too.
SHIFTS = ((1 / 2, 0), (1 / 4, 1), (1 / 4, -1))
VIEWS = tuple(View(weight / 2, shift, shift, mirrored) for weight, shift in SHIFTS for mirrored in (False, True))


class Speedrun(nn.Module):
    """A fixed whitening layer, seven 3x3 convolutions in three groups, a dense layer.

    width1, width2, width3: channels of the groups.  classes: width of `head`.
    dtype: of the computation; parameters stay in `param_dtype`.
    """

    views = VIEWS

    width1: int = 32
    width2: int = 96
    width3: int = 128
    classes: int = 10
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Name the layers."""
        types = self.dtype, self.param_dtype
        conv = partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype, use_bias=False, kernel_init=identities)
        self.normalise = Normalise(self.param_dtype)
        self.whiten = Whiten(*types)
        self.act0 = Function(layers.gelu)
        for group, width in zip(GROUPS, (self.width1, self.width2, self.width3), strict=True):
            for place in group:
                setattr(self, f"conv{place}", conv(width))
                setattr(self, f"norm{place}", BatchNorm(self.param_dtype))
                setattr(self, f"act{place}", Function(layers.gelu))
            setattr(self, f"pool{group[0]}", Function(layers.max_pool))
        self.pool7 = Function(layers.global_max_pool)
        self.head = Dense(self.classes, *types, use_bias=False, kernel_init=unit_deviation)

    def features(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n (h-1)//2 (w-1)//2 c"]:
        """Compute what comes before the first batch norm: each image independently."""
        return self.pool1(self.conv1(self.act0(self.whiten(self.normalise(x)))))

    def classify(self, x: Float[Array, "n h w c"], key: BatchKey | None = None) -> Float[Array, "n classes"]:
        """Compute logits of `features`. In training, batch statistics are of the images that are real."""
        for first, *others in GROUPS:
            layer = lambda kind, place: getattr(self, f"{kind}{place}")  # noqa: E731
            x = layer("pool", first)(layer("conv", first)(x)) if first > 1 else x
            x = shortcut = layer("act", first)(layer("norm", first)(x, key))
            for place in others:
                x = layer("norm", place)(layer("conv", place)(x), key)
                x = layer("act", place)(x + shortcut if place == others[-1] else x)
        return self.head(self.pool7(x)) / self.width3

    def __call__(self, x: Float[Array, "n h w 3"], key: BatchKey | None = None) -> Float[Array, "n classes"]:
        """Compute logits of images scaled to 0..1."""
        return self.classify(self.features(x), key)

    @classmethod
    def from_shapes(cls, shape: Callable[[str, int], tuple[int, ...]]) -> "Speedrun":
        """Read the widths off a file: `shape(name, axes)` is the shape of an entry that has so many axes."""
        widths = [shape(f"conv{place}/kernel", 4)[-1] for place in (2, 4, 7)]
        return cls(*widths, shape("head/kernel", 2)[-1])


def identities(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draw a kernel as PyTorch does, then make its first filters pass on one channel each (PyTorch's `dirac_`)."""
    height, width, inputs, outputs = shape
    kernel = layers.torch_uniform(height * width * inputs)(key, shape, dtype)
    few = min(inputs, outputs)
    passed = (
        jnp.zeros((height, width, inputs, few), dtype)
        .at[height // 2, width // 2]
        .set(jnp.eye(inputs, few, dtype=dtype))
    )
    return kernel.at[..., :few].set(passed)


def unit_deviation(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draw a kernel as PyTorch does, and divide it by its standard deviation."""
    kernel = layers.torch_uniform(shape[0])(key, shape, dtype)
    return kernel / kernel.std(ddof=1)


def constants(images: UInt8[np.ndarray, "n h w c"]) -> dict[str, Any]:
    """Compute the network's constants: mean and deviation of training images, and a kernel that whitens 2x2 patches.

    The kernel's directions are the eigenvectors of the patches' covariance, the largest first, each divided by the
    deviation along it, and their negatives. Grey images vary along 4 of the 12: those are repeated, since an empty
    channel holds only rounding, which seven batch norms would amplify to gradients of 1e18. Float64 throughout,
    rounded once.
    """
    pixels = np.arange(256) / 255
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    mean = counts @ pixels / counts.sum(axis=1)
    deviation = np.sqrt(np.maximum(counts @ pixels**2 / counts.sum(axis=1) - mean**2, ROUNDING))
    x = (pixels[images[:IMAGES]] - mean) / deviation
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    patches = patches.reshape(-1, 4 * x.shape[-1])
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    largest_first = (directions / np.sqrt(variances + EPSILON))[:, ::-1]
    carrying = max(int(np.count_nonzero(variances > ROUNDING)), 1)
    directions = largest_first[:, np.arange(len(variances)) % carrying]
    kernel = np.concatenate([directions, -directions], axis=1).reshape(2, 2, x.shape[-1], -1)
    found = {"normalise": {"mean": mean, "deviation": deviation}, "whiten": {"kernel": kernel}}
    return {"constants": jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), found)}
