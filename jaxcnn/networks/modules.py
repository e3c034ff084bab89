"""Linen modules that the networks are made of; each gives an operation of `layers` a name and its parameters."""

from collections.abc import Callable
from math import prod
from typing import Any
from zlib import crc32

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcnn import layers
from jaxcnn.layers import DropoutKey


class Function(nn.Module):
    """A layer without parameters, a module so that its output has a name to be captured by."""

    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        """Apply the function."""
        return self.function(x)


class Dropout(nn.Module):
    """Dropout. The k-th that a network names draws its masks from the k-th fold of the key.

    One in a block, a list or a compact module has the checksum of its path for k, so that no two have the same masks.
    """

    rate: float

    def __call__(self, x: Array, key: DropoutKey | None) -> Array:
        """Drop out and scale; without a key, return x."""
        if key is None:
            return x
        named = [name for name, layer in vars(self.parent).items() if isinstance(layer, Dropout)] if self.path else []
        is_named = len(self.path) == 1 and self.name in named
        number = named.index(str(self.name)) if is_named else crc32("/".join(self.path).encode())
        return layers.dropout(x, key.fold_in(number), self.rate)


class Affine(nn.Module):
    """A layer of `features` outputs with PyTorch's initial distribution; parameters stay in `param_dtype`."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def promoted(self, x: Array, *fan_in: int) -> tuple[Array, Array, Array]:
        """Give x, the kernel and the bias in the type of the computation."""
        draw = layers.torch_uniform(prod(fan_in))
        kernel = self.param("kernel", draw, (*fan_in, self.features), self.param_dtype)
        bias = self.param("bias", draw, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x, kernel, bias


class Conv(Affine):
    """PyTorch's `Conv2d(c, features, 3, padding=1)`.

    For another kernel size or a stride take `nn.Conv`: what makes this one faster on the CPU holds for stride 1.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        """Convolve and add the bias."""
        x, kernel, bias = self.promoted(x, 3, 3, x.shape[-1])
        return layers.add_bias(layers.conv2d(x, kernel, ((1, 1), (1, 1))), bias)


class Dense(Affine):
    """PyTorch's `Linear(k, features)`."""

    @nn.compact
    def __call__(self, x: Float[Array, "n k"]) -> Float[Array, "n features"]:
        """Multiply and add the bias."""
        x, kernel, bias = self.promoted(x, x.shape[-1])
        return lax.dot(x, kernel, precision=layers.EXACT) + bias[None]
