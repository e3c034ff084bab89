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
from jaxcnn.layers import BatchKey


class Function(nn.Module):
    """A layer without parameters: a module, so that its output can be captured by name."""

    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        """Apply the function."""
        return self.function(x)


class Dropout(nn.Module):
    """Dropout. The k-th that a network names draws its masks from the k-th fold of the key.

    In a block, a list or a compact module, k is the checksum of its path, so that no two have the same masks.
    """

    rate: float

    def __call__(self, x: Array, key: BatchKey | None) -> Array:
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
    use_bias: bool = True
    kernel_init: Callable[..., Array] | None = None  # None: PyTorch's

    def promoted(self, x: Array, *fan_in: int) -> tuple[Array, Array, Array | None]:
        """Give x, the kernel and the bias in the type of the computation."""
        draw = layers.torch_uniform(prod(fan_in))
        kernel = self.param("kernel", self.kernel_init or draw, (*fan_in, self.features), self.param_dtype)
        bias = self.param("bias", draw, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x, kernel, bias


class Conv(Affine):
    """PyTorch's `Conv2d(c, features, 3, padding=1)`.

    For another kernel size or a stride use `nn.Conv`: what makes this one faster on the CPU needs stride 1.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        """Convolve and add the bias."""
        x, kernel, bias = self.promoted(x, 3, 3, x.shape[-1])
        y = layers.conv2d(x, kernel, ((1, 1), (1, 1)))
        return y if bias is None else layers.add_bias(y, bias)


class Dense(Affine):
    """PyTorch's `Linear(k, features)`."""

    @nn.compact
    def __call__(self, x: Float[Array, "n k"]) -> Float[Array, "n features"]:
        """Multiply and add the bias."""
        x, kernel, bias = self.promoted(x, x.shape[-1])
        y = lax.dot(x, kernel, precision=layers.EXACT)
        return y if bias is None else y + bias[None]


class Normalise(nn.Module):
    """Normalise images by channel, by a mean and a standard deviation that are constants, in the constants' type."""

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Subtract the mean and divide by the deviation."""
        mean = self.variable("constants", "mean", jnp.zeros, x.shape[-1:], self.param_dtype).value
        deviation = self.variable("constants", "deviation", jnp.ones, x.shape[-1:], self.param_dtype).value
        x = x.astype(self.param_dtype)
        return (x - mean[None, None, None]) / deviation[None, None, None]


class Whiten(nn.Module):
    """A 2x2 convolution, without padding, whose kernel is constant: its outputs are uncorrelated. The bias is trained.

    It has twice as many outputs as a patch has numbers: each direction, and its negative. Computed in `param_dtype`:
    it divides by deviations down to 0.07, which in bfloat16 would leave only the rounding of the image.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h-1 w-1 8*c"]:
        """Convolve and add the bias."""
        shape = (2, 2, x.shape[-1], 8 * x.shape[-1])
        kernel = self.variable("constants", "kernel", jnp.zeros, shape, self.param_dtype).value
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)
        y = layers.stock_conv(x.astype(self.param_dtype), kernel, ((0, 0), (0, 0)))
        return layers.add_bias(y, bias).astype(self.dtype)


class BatchNorm(nn.Module):
    """PyTorch's `BatchNorm2d(c, eps=1e-12, momentum=0.4)` with a scale of 1; the bias is trained.

    `nn.BatchNorm` keeps the biased variance, PyTorch the unbiased one. In bfloat16 the statistics are float32: 8 bits
    cannot hold the mean of a batch.
    """

    param_dtype: Any = jnp.float32
    kept: float = 0.6  # of the running statistics, in each step: 1 - PyTorch's momentum
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], key: BatchKey | None) -> Float[Array, "n h w c"]:
        """Normalise by the statistics of the real images, and keep them; without a key, by those that are kept."""
        dtype, x, shape = x.dtype, layers.widened(x), x.shape[-1:]
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        kept_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        kept_variance = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        if key is None:
            scale = lax.rsqrt(kept_variance.value + self.epsilon)
            return layers.scale_and_shift(x, kept_mean.value, scale, bias).astype(dtype)
        y, mean, variance, count = layers.batch_norm(x, bias.astype(x.dtype), self.epsilon, key.real)
        unbiased = variance * (count / (count - 1))
        for kept, new in (kept_mean, mean), (kept_variance, unbiased):
            kept.value = self.kept * kept.value + (1 - self.kept) * new.astype(kept.value.dtype)
        return y.astype(dtype)
