"""Pure operations, defined as PyTorch defines them: convolution, max pooling, dropout, cross entropy, first weights.

Layout is NHWC for images and HWIO for kernels. If no gradient is asked for, nearly all of it is XLA's own, which fuses
it well. `lax.platform_dependent` picks `cpu`'s version of a gradient when the program is lowered.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Key, Shaped, UInt, UInt16, UInt32

from jaxcnn import cpu
from jaxcnn.cpu import Padding

NHWC = ("NHWC", "HWIO", "NHWC")

# float32 products are float32 on every platform: XLA's default is TF32 on a GPU and bfloat16 on a TPU (jax#18934).
EXACT = lax.Precision.HIGHEST


def check_images(images: Any) -> None:
    """Raise TypeError if images are not uint8 [n, h, w, c]."""
    found = f"{images.dtype}{list(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
    if not found.startswith("uint8") or images.ndim != 4:
        raise TypeError(f"images should be uint8 [n, h, w, c], 0 to 255, and are {found}")


def scale_pixels(images: Shaped[Array | np.ndarray, "..."], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Scale pixels 0..255 to `dtype` 0..1, as the tutorial's `ToTensor` does.

    They are looked up, since XLA:CPU multiplies by a reciprocal: 126 of the 256 float32 values would be off by a unit.
    """
    table = jnp.asarray(np.arange(256, dtype=dtype) / np.asarray(255, dtype))
    return table.at[jnp.asarray(images, jnp.int32)].get(mode="promise_in_bounds")


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n h*w*c"]:
    """Make one row of each image, in (H, W, C) order. PyTorch's order is (C, H, W)."""
    return x.reshape(len(x), -1)


def stock_conv(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding) -> Any:
    """Convolve with stride 1 by XLA's convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC, precision=EXACT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding) -> Any:
    """Convolve with stride 1: y[n,i,j,o] = sum over a, b, c of x[n,i+a,j+b,c] kernel[a,b,c,o], x zero-padded."""
    return _convolved(x, kernel, padding, cpu.few_channels(kernel) and len(x) <= cpu.EVALUATED)


def _conv2d_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolved(x, kernel, padding, cpu.as_product(x, kernel)), (x, kernel)


def _convolved(x: Array, kernel: Array, padding: Padding, as_product: bool) -> Array:
    stock = partial(stock_conv, padding=padding)
    is_cut = min(map(min, padding)) < 0  # a gradient's padding, where a convolution's own was larger than its kernel
    if is_cut or not as_product:
        return stock(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(cpu.conv2d, padding=padding), default=stock)


def _conv2d_backward(padding: Padding, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Convolve dy with the flipped kernel, its channels swapped, for dx; dkernel is `cpu`'s or XLA's.

    XLA:CPU runs the convolution that automatic differentiation makes for dx at half the speed: a step inside a loop
    took 389 ms with that one, 154 with this one.
    """
    x, kernel = saved
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dx = _convolved(dy, turned, cpu.input_padding(kernel, padding), cpu.as_product(dy, turned))

    def stock(x: Array, kernel: Array, dy: Array) -> Array:
        return jax.vjp(lambda kernel: stock_conv(x, kernel, padding), kernel)[1](dy)[0]

    products = partial(cpu.kernel_gradient, padding=padding)
    return dx, lax.platform_dependent(x, kernel, dy, cpu=products, default=stock)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "... c"], bias: Float[Array, "c"]) -> Float[Array, "... c"]:
    """Add a bias to many rows."""
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _add_bias_backward(_: None, dy: Array) -> tuple[Array, Array]:
    dy = lax.optimization_barrier(dy)  # otherwise XLA:CPU computes dy again for the sum
    rows = dy.reshape(-1, dy.shape[-1])
    return dy, lax.platform_dependent(rows, cpu=cpu.sum_rows, default=lambda rows: rows.sum(axis=0))


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _add_bias_backward)


@jax.custom_vjp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Take the maximum of each 2x2 window, stride 2; an odd last row or column is left out.

    The gradient goes to the first maximum of a window, in row-major order. NaN wins. Both are PyTorch's conventions.
    XLA:CPU's own gradient, `select_and_scatter`, takes 15 ms at batch 32, this one 8.
    """
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    first, second, third, fourth = (x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    y = jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))
    place = jnp.where(first == y, 0, jnp.where(second == y, 1, jnp.where(third == y, 2, 3))).astype(jnp.uint8)
    place = checkpoint_name(place, "place")
    return y, (place, jnp.zeros((0, *x.shape[1:3]), jnp.uint8))  # the second is there for its shape


def _max_pool_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    place, shape = saved
    n, h, w, c = dy.shape
    corner = 2 * lax.broadcasted_iota(jnp.uint8, (1, 1, 2, 1, 2, 1), 2)
    corner += lax.broadcasted_iota(jnp.uint8, (1, 1, 2, 1, 2, 1), 4)
    dx = jnp.where(place[:, :, None, :, None] == corner, dy[:, :, None, :, None], jnp.zeros((), dy.dtype))
    rest = [(0, 0), (0, shape.shape[1] - 2 * h), (0, shape.shape[2] - 2 * w), (0, 0)]
    return (jnp.pad(dx.reshape(n, 2 * h, 2 * w, c), rest),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def global_max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Take the maximum of each channel. The gradient goes to the first, as PyTorch's; `x.max` divides it."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    first = lax.argmax(rows, 1, jnp.int32)[:, None]
    places = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    return jnp.where(places == first, rows, jnp.zeros((), x.dtype)).sum(axis=1, dtype=x.dtype)


class BatchKey(NamedTuple):
    """What a training batch needs: a random key, each image's place in the key's batch, and which images are real."""

    key: Key[Array, ""]
    places: UInt32[Array, "n"]
    real: Bool[Array, "n"] | None = None  # None: all

    @classmethod
    def of_batch(cls, key: Key[Array, ""], images: int, real: Bool[Array, "n"] | None = None) -> "BatchKey":
        """Make the key of a whole batch."""
        return cls(key, jnp.arange(images, dtype=jnp.uint32), real)

    def fold_in(self, number: int) -> "BatchKey":
        """Make another key from this one, a different one for each number."""
        return self._replace(key=jax.random.fold_in(self.key, number))


def random_uint16(key: BatchKey, shape: Sequence[int]) -> UInt16[Array, "n ..."]:
    """Draw `shape` uniform 16-bit numbers for each image: a function of key and place, however many images there are.

    Threefry-2x32 (Salmon et al. 2011) of the pair (place, block) yields two words, so four numbers; `jax.random.bits`
    spends a whole hash on each. Integers throughout: the same with and without x64, on any platform or device count.
    """
    size, images = prod(shape), len(key.places)
    blocks = -(-size // 4)
    counters = jnp.broadcast_arrays(key.places[:, None], jnp.arange(blocks, dtype=jnp.uint32)[None])
    first, second = jax.random.key_data(key.key)[:2]  # another generator's key has more words
    words = threefry_2x32((first, second), jnp.stack(counters))
    numbers = lax.bitcast_convert_type(jnp.concatenate([words[0], words[1]], axis=1), jnp.uint16)
    return numbers.reshape(images, 4 * blocks)[:, :size].reshape(images, *shape)


def keep_mask(key: BatchKey, rate: float, shape: Sequence[int]) -> Bool[Array, "n ..."]:
    """Choose which elements dropout keeps: each with probability 1 - rate, to within 2**-17."""
    return random_uint16(key, shape) >= jnp.uint16(round(rate * 2**16))


def dropout(x: Float[Array, "n ..."], key: BatchKey, rate: float) -> Float[Array, "n ..."]:
    """Zero what `keep_mask` drops and scale the rest by 1 / (1 - rate), as `torch.nn.functional.dropout` does."""
    keep, scale = keep_mask(key, rate, x.shape[1:]), jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute x times the normal distribution's probability below x: PyTorch's GELU, not Flax's tanh form."""
    return x * (0.5 + 0.5 * lax.erf(x * (0.5**0.5)))


def scale_and_shift(
    x: Float[Array, "n h w c"], mean: Float[Array, "c"], scale: Float[Array, "c"], bias: Float[Array, "c"]
) -> Float[Array, "n h w c"]:
    """Compute (x - mean) scale + bias, by channel, in the type of x."""
    mean, scale, bias = (a.astype(x.dtype)[None, None, None] for a in (mean, scale, bias))
    return (x - mean) * scale + bias


@jax.custom_vjp
def batch_norm(
    x: Float[Array, "n h w c"], bias: Float[Array, "c"], epsilon: float, real: Bool[Array, "n"] | None
) -> tuple[Float[Array, "n h w c"], Float[Array, "c"], Float[Array, "c"], Float[Array, ""]]:
    """Normalise by the mean and the biased variance of each channel over the images that are real, and add a bias.

    Return the mean, the variance and the number of values too; no gradient flows through these three.
    """
    return _batch_norm_forward(x, bias, epsilon, real)[0]


def _batch_norm_forward(x: Array, bias: Array, epsilon: float, real: Array | None) -> tuple[Any, Any]:
    weights = jnp.ones(len(x), x.dtype) if real is None else real.astype(x.dtype)
    count = weights.sum(dtype=x.dtype) * (x.shape[1] * x.shape[2])
    mean = _sums(x, weights) / count
    variance = _sums(jnp.square(x - mean[None, None, None]), weights) / count
    scale = lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    return (scale_and_shift(x, mean, scale, bias), mean, variance, count), (x, weights, count, mean, scale)


def _batch_norm_backward(saved: Any, cotangents: Any) -> tuple[Array, Array, None, None]:
    """Give the gradients by their formulas: two sums and one pass, where automatic differentiation takes four."""
    (x, weights, count, mean, scale), dy = saved, cotangents[0]
    centred, all_images = x - mean[None, None, None], jnp.ones_like(weights)
    dbias, slope = _sums(dy, all_images), _sums(dy * centred, all_images)
    along = centred * (jnp.square(scale) * slope)[None, None, None]
    share = (weights / count)[:, None, None, None]
    return scale[None, None, None] * (dy - share * (dbias[None, None, None] + along)), dbias, None, None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _sums(x: Float[Array, "n h w c"], weights: Float[Array, "n"]) -> Float[Array, "c"]:
    """Sum the pixels of weighted images, as a product: XLA:CPU's own sums take three times as long.

    First over the images, then over the pixels: one sum of a million numbers would be off by 1e-5, gradients by 5 %.
    """
    by_pixel = lax.dot(weights[None], x.reshape(len(x), -1), precision=EXACT)
    return by_pixel.reshape(-1, x.shape[-1]).sum(axis=0)


def cross_entropy(logits: Float[Array, "b classes"], labels: UInt[Array, "b"]) -> Float[Array, "b"]:
    """Compute each image's own loss, in nats; float64 for float64 logits, float32 for all others."""
    # Not optax's, which subtracts two numbers as large as logits: at a loss of 0.002 its error is twice PyTorch's.
    chances = jax.nn.log_softmax(widened(logits))
    return -jnp.take_along_axis(chances, labels[:, None].astype(jnp.int32), axis=1)[:, 0]


def widened(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Cast x to the type in which sums are taken: float64 stays, all others become float32."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Make an initializer of PyTorch's distribution of kernels and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    torch.nn.modules.conv and linear: kaiming_uniform_(a=sqrt(5)) comes to this. It draws float32 with and without x64.
    """

    def initialise(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, tuple(shape), jnp.float32, -bound, bound).astype(dtype)

    return initialise
