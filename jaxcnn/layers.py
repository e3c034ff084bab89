"""What stock Flax does slowly, or otherwise than PyTorch: convolution, max pooling, dropout, initial weights.

Layout is NHWC for images and HWIO for kernels. Without gradients all of it is XLA's own, which fuses it well. With
them, on the CPU, passes are written as matrix products; on any other platform XLA's own convolutions are used, chosen
when the program is lowered (`lax.platform_dependent`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Key, UInt16, UInt32

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


def _few_channels(kernel: Array) -> bool:
    """Whether the taps of an input pixel are no more numbers than its outputs, and so may lie side by side."""
    kh, kw, c, o = kernel.shape
    return kh * kw * c <= o


def _taps(x: Array, kernel: Array, padding: Padding) -> Float[Array, "pixels kh*kw*c"]:
    """What the kernel sees of x at each output pixel."""
    (kh, kw), x = kernel.shape[:2], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    taps = jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(kh) for b in range(kw)], axis=-1)
    return taps.reshape(-1, taps.shape[-1])


def _conv_by_product(x: Array, kernel: Array, padding: Padding) -> Array:
    """The tutorial's conv1 takes 0.14 ms for four images so, XLA:CPU's convolution 0.33."""
    kh, kw, _, o = kernel.shape
    (n, h, w, _), (rows, columns) = x.shape, (sum(pads) for pads in padding)
    y = jnp.matmul(_taps(x, kernel, padding), kernel.reshape(-1, o), precision=lax.Precision.HIGHEST)
    return y.reshape(n, h + rows - kh + 1, w + columns - kw + 1, o)


def _conv2d_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    stock = partial(stock_conv, padding=padding)
    if not _few_channels(kernel):
        return stock(x, kernel), (x, kernel)
    y = lax.platform_dependent(x, kernel, cpu=partial(_conv_by_product, padding=padding), default=stock)
    return y, (x, kernel)


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
    if _few_channels(kernel):
        return (_taps(x, kernel, padding).T @ dy.reshape(n * h * w, o)).reshape(kernel.shape)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    # x shifted along its rows, dy along its columns: their product holds every tap (12 ms; other ways 15 to 26).
    across = jnp.concatenate([x[:, :, b : b + w] for b in range(kw)], axis=-1)
    down = jnp.pad(dy.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (kh - 1, kh - 1), (0, 0)))
    down = jnp.stack([down[:, :, kh - 1 - a : 2 * (kh - 1) - a + h] for a in range(kh)])
    taps = down.reshape(kh * o, -1) @ across.reshape(-1, kw * c)
    return taps.reshape(kh, o, kw, c).transpose(0, 2, 3, 1)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "... c"], bias: Float[Array, "c"]) -> Float[Array, "... c"]:
    """x + bias, for many rows: on the CPU the bias gradient is a product with ones."""
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _add_bias_backward(_: None, dy: Array) -> tuple[Array, Array]:
    """XLA:CPU's sum over rows costs 5 ms a step of 44, most of it since it computes dy anew: hence the barrier."""
    dy = lax.optimization_barrier(dy)
    rows = dy.reshape(-1, dy.shape[-1])
    total = lax.platform_dependent(
        rows,
        cpu=lambda rows: (jnp.ones((1, len(rows)), rows.dtype) @ rows)[0],
        default=lambda rows: rows.sum(axis=0),
    )
    return dy, total


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _add_bias_backward)


@jax.custom_vjp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h/2 w/2 c"]:
    """Maxima of 2x2 windows with stride 2, an odd last row or column left out.

    A tie's gradient goes to its first maximum in row-major order, as in PyTorch. NaN wins, as in PyTorch and XLA.
    """
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _corners(x: Array) -> list[Array]:
    """The four corners of each window, in row-major order, each [n, h/2, w/2, c]."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    first, second, third, fourth = _corners(x)
    y = jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))
    place = jnp.where(first == y, 0, jnp.where(second == y, 1, jnp.where(third == y, 2, 3))).astype(jnp.uint8)
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


def random_uint16(
    key: Key[Array, ""], shape: Sequence[int], rows: UInt32[Array, "n"] | None = None
) -> UInt16[Array, "n ..."]:
    """Uniform 16-bit numbers: row i depends on the key, i and the row's shape alone, not on how many rows there are.

    rows: which ones are wanted, where not the first shape[0].

    Threefry-2x32 (Salmon et al. 2011) of the pair (row, block) yields two words, so four numbers; `jax.random.bits`
    spends a whole hash on each. Integers throughout: the same with and without x64, on any platform or device count.
    """
    rows = jnp.arange(shape[0], dtype=jnp.uint32) if rows is None else rows
    size = prod(shape[1:])
    blocks = -(-size // 4)
    counters = jnp.broadcast_arrays(rows[:, None], jnp.arange(blocks, dtype=jnp.uint32)[None])
    first, second = jax.random.key_data(key)
    words = threefry_2x32((first, second), jnp.stack(counters))
    numbers = lax.bitcast_convert_type(jnp.concatenate([words[0], words[1]], axis=1), jnp.uint16)
    return numbers.reshape(shape[0], 4 * blocks)[:, :size].reshape(shape)


def keep_mask(
    key: Key[Array, ""], rate: float, shape: Sequence[int], rows: UInt32[Array, "n"] | None = None
) -> Bool[Array, "n ..."]:
    """Which elements dropout keeps: each with probability 1 - rate, to within 2**-17. `rows`: as `random_uint16`."""
    return random_uint16(key, shape, rows) >= jnp.uint16(round(rate * 2**16))


def dropout(
    x: Float[Array, "n ..."], key: Key[Array, ""], rate: float, rows: UInt32[Array, "n"] | None = None
) -> Float[Array, "n ..."]:
    """Zero what `keep_mask` does not keep and scale the rest by 1 / (1 - rate), as `torch.nn.functional.dropout`."""
    keep, scale = keep_mask(key, rate, x.shape, rows), jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's initial distribution of kernels and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    torch.nn.modules.conv and linear: kaiming_uniform_(a=sqrt(5)) comes to this. Drawn in float32 whatever x64 is.
    """

    def initialise(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, tuple(shape), jnp.float32, -bound, bound).astype(dtype)

    return initialise
