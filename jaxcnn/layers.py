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
    """dkernel[a,b,c,o] = sum over n, i, j of x[n,i+a,j+b,c] dy[n,i,j,o], as one product for each kernel row a.

    XLA:CPU's own takes 111 to 224 ms for the tutorial's conv2 at batch 32, and 30 times that inside a loop.
    """
    (kh, kw, c, o), (_, h, w, _) = kernel.shape, dy.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if c * kw < 32:  # few channels: one product a row
        shifts = jnp.concatenate([padded[:, :, b : b + w] for b in range(kw)], axis=-1)
        rows = [jnp.einsum("nijk,nijo->ko", shifts[:, a : a + h], dy) for a in range(kh)]
        return jnp.stack(rows).reshape(kh, kw, c, o)
    shifts = jnp.concatenate([padded[:, :, b : b + w] for b in range(kw)], axis=-1)
    dys = jnp.concatenate([jnp.pad(dy, ((0, 0), (a, kh - 1 - a), (0, 0), (0, 0))) for a in range(kh)], axis=-1)
    return jnp.einsum("nijk,nijl->kl", shifts, dys).reshape(kw, c, kh, o).transpose(2, 0, 1, 3)


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
    return _windows(x).max(axis=0)


def _windows(x: Array) -> Array:
    """The four corners of each window, in row-major order: [4, n, h/2, w/2, c]."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return jnp.stack([x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)])


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, y = saved
    taken = jnp.zeros(y.shape, bool)
    corners = []
    for corner in _windows(x):
        first = ((corner == y) | jnp.isnan(corner)) & ~taken
        taken = taken | first
        corners.append(jnp.where(first, dy, 0))
    n, h, w, c = y.shape
    dx = jnp.stack(corners).reshape(2, 2, n, h, w, c).transpose(2, 3, 0, 4, 1, 5).reshape(n, 2 * h, 2 * w, c)
    return (jnp.pad(dx, ((0, 0), (0, x.shape[1] - 2 * h), (0, x.shape[2] - 2 * w), (0, 0))),)


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
