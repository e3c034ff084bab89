"""What stock Flax does slowly, or otherwise than PyTorch: convolution, max pooling, dropout, initial weights.

Layout is NHWC for images and HWIO for kernels. On the CPU the gradients are written as matrix products; on any other
platform XLA's own convolutions are used, chosen when the program is lowered (`lax.platform_dependent`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Key, UInt16

Padding = tuple[tuple[int, int], tuple[int, int]]

NHWC = ("NHWC", "HWIO", "NHWC")


def stock_conv(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding) -> Any:
    """XLA's convolution with stride 1."""
    exact = lax.Precision.HIGHEST
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC, precision=exact)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding) -> Any:
    """Convolution with stride 1: y[n,i,j,o] = sum over a, b, c of x[n,i+a,j+b,c] kernel[a,b,c,o], x zero-padded."""
    return stock_conv(x, kernel, padding)


def _conv2d_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return stock_conv(x, kernel, padding), (x, kernel)


def _conv2d_backward(padding: Padding, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """dx is dy convolved with the kernel turned round and its channels swapped.

    Said as a convolution of its own, since XLA:CPU runs the one that automatic differentiation makes of it at half the
    speed: a step inside a loop took 389 ms with that, 154 with this.
    """
    x, kernel = saved
    (kh, kw), ((top, bottom), (left, right)) = kernel.shape[:2], padding
    rest = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
    dx = stock_conv(dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), rest)
    dkernel = lax.platform_dependent(
        x, kernel, dy,
        cpu=partial(_kernel_gradient_by_products, padding=padding),
        default=partial(_kernel_gradient_stock, padding=padding),
    )  # fmt: skip
    return dx, dkernel


def _kernel_gradient_stock(x: Array, kernel: Array, dy: Array, *, padding: Padding) -> Array:
    return jax.vjp(lambda kernel: stock_conv(x, kernel, padding), kernel)[1](dy)[0]


def _kernel_gradient_by_products(x: Array, kernel: Array, dy: Array, *, padding: Padding) -> Array:
    """dkernel[a,b,c,o] = sum over n, i, j of x[n,i+a,j+b,c] dy[n,i,j,o], as one product of matrices.

    XLA:CPU's own takes 111 to 224 ms for the tutorial's conv2 at batch 32, and 30 times that inside a loop.
    """
    (kh, kw, c, o), (n, h, w, _) = kernel.shape, dy.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if kh * kw * c <= o:  # few input channels: all taps of x side by side
        taps = jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(kh) for b in range(kw)], axis=-1)
        return (taps.reshape(n * h * w, -1).T @ dy.reshape(n * h * w, o)).reshape(kernel.shape)
    # x shifted along its rows, dy along its columns: their product holds every tap (12 ms; other ways 15 to 26).
    across = jnp.concatenate([x[:, :, b : b + w] for b in range(kw)], axis=-1)
    down = jnp.pad(dy.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (kh - 1, kh - 1), (0, 0)))
    down = jnp.stack([down[:, :, kh - 1 - a : 2 * (kh - 1) - a + h] for a in range(kh)])
    taps = down.reshape(kh * o, -1) @ across.reshape(-1, kw * c)
    return taps.reshape(kh, o, kw, c).transpose(0, 2, 3, 1)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`conv2d` as `flax.linen.Conv(conv_general_dilated=...)` calls it; XLA's own for all it cannot do."""
    ones = all(
        d in (None, 1, (1, 1)) for d in (lhs_dilation and tuple(lhs_dilation), rhs_dilation and tuple(rhs_dilation))
    )
    if lhs.ndim == 4 and tuple(window_strides) == (1, 1) and ones and feature_group_count == 1:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
        return conv2d(lhs, rhs, tuple((int(low), int(high)) for low, high in padding))
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        precision=precision,
    )  # fmt: skip


@jax.custom_vjp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h/2 w/2 c"]:
    """Maxima of 2x2 windows with stride 2, an odd last row or column left out.

    A tie's gradient goes to its first maximum in row-major order, as in PyTorch. NaN wins, as in PyTorch and XLA.
    """
    first, second, third, fourth = _corners(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _corners(x: Array) -> list[Array]:
    """The four corners of each window, in row-major order, each [n, h/2, w/2, c]."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool(x)
    first, second, third, _ = (corner == y for corner in _corners(x))
    place = jnp.where(first, 0, jnp.where(second, 1, jnp.where(third, 2, 3))).astype(jnp.uint8)
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


def random_uint16(key: Key[Array, ""], shape: Sequence[int]) -> UInt16[Array, "..."]:
    """Uniform 16-bit numbers: row i depends on the key, i and the row's shape alone, not on how many rows there are.

    Threefry-2x32 (Salmon et al. 2011) of the pair (row, block) yields two words, so four numbers; `jax.random.bits`
    spends a whole hash on each. Integers throughout: the same with and without x64, on any platform or device count.
    """
    rows, size = shape[0], 1
    for extent in shape[1:]:
        size *= extent
    blocks = -(-size // 4)
    counters = [lax.broadcasted_iota(jnp.uint32, (rows, blocks), axis) for axis in (0, 1)]
    first, second = jax.random.key_data(key)
    words = threefry_2x32((first, second), jnp.stack(counters))
    numbers = lax.bitcast_convert_type(jnp.concatenate([words[0], words[1]], axis=1), jnp.uint16)
    return numbers.reshape(rows, 4 * blocks)[:, :size].reshape(shape)


def keep_mask(key: Key[Array, ""], rate: float, shape: Sequence[int]) -> Bool[Array, "..."]:
    """Which elements dropout keeps: each with probability 1 - rate, to within 2**-17."""
    return random_uint16(key, shape) >= jnp.uint16(round(rate * 2**16))


def dropout(x: Float[Array, "n ..."], key: Key[Array, ""], rate: float) -> Float[Array, "n ..."]:
    """Zero what `keep_mask` does not keep and scale the rest by 1 / (1 - rate), as `torch.nn.functional.dropout`."""
    return jnp.where(keep_mask(key, rate, x.shape), x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's initial distribution of kernels and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    torch.nn.modules.conv and linear: kaiming_uniform_(a=sqrt(5)) comes to this. Drawn in float32 whatever x64 is.
    """

    def initialise(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, tuple(shape), jnp.float32, -bound, bound).astype(dtype)

    return initialise
