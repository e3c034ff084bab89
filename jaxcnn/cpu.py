"""How XLA's CPU backend is made fast: gradients as matrix products, batches in chunks, compiler options.

Each function computes what its counterpart in `layers` defines. Timings: two cores, the tutorial's network.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

CHUNK = 4  # images: a step takes 38 ms for 42 with the whole batch of 32, 122 for 150 at 128, 480 for 750 at 512

# jaxlib 0.10 gives the CPU's convolutions to YNNPACK, which in training runs them on one thread. With this option they
# go to Eigen, on all threads: conv2 at batch 32 takes 4.1 ms for 8.3. Evaluation keeps YNNPACK, which fuses the whole
# network: 26 ms for 34 at batch 128. Only this version is known to have the option.
COMPILER_OPTIONS = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if version("jaxlib").startswith("0.10.")
    else None
)


def in_chunks(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Make a stage of a network work through a batch CHUNK images at a time on the CPU.

    What it works on then stays in the cache, forward and backward. On any other platform the stage is unchanged.

    stage: a function of pytrees whose leaves start with the batch axis; each image's output depends on that image only.
    """

    def chunked(*batch: Any) -> Any:
        n = len(jax.tree.leaves(batch)[0])
        size = _divisor(n, CHUNK)
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)
        outputs = lax.map(lambda chunk: stage(*chunk), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[2:]), outputs)

    return lambda *batch: lax.platform_dependent(*batch, cpu=chunked, default=stage)


def _divisor(n: int, most: int) -> int:
    return max(size for size in range(1, most + 1) if n % size == 0)


def few_channels(kernel: Float[Array, "kh kw c o"]) -> bool:
    """Tell if an output pixel sees no more numbers than it has channels: few enough to be copied side by side."""
    kh, kw, c, o = kernel.shape
    return kh * kw * c <= o


def few_pixels(x: Float[Array, "n h w c"]) -> bool:
    """Tell if images are so small that XLA's convolution spends its time between them.

    Of 2x2 pixels, 128 channels, 500 of them take it 123 ms, and one product 8.
    """
    return x.shape[1] * x.shape[2] < 16


def _taps(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding
) -> Float[Array, "pixels kh*kw*c"]:
    """Gather what the kernel sees of x at each output pixel."""
    (kh, kw), x = kernel.shape[:2], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    taps = jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(kh) for b in range(kw)], axis=-1)
    return taps.reshape(-1, taps.shape[-1])


def conv2d(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve by one product, for `few_channels`: conv1 takes 0.14 ms for four images, 0.33 by XLA's convolution."""
    kh, kw, _, o = kernel.shape
    (n, h, w, _), (rows, columns) = x.shape, (sum(pads) for pads in padding)
    y = jnp.matmul(_taps(x, kernel, padding), kernel.reshape(-1, o), precision=lax.Precision.HIGHEST)
    return y.reshape(n, h + rows - kh + 1, w + columns - kw + 1, o)


def kernel_gradient(x: Array, kernel: Array, dy: Array, padding: Padding) -> Array:
    """Compute dkernel[a,b,c,o] = sum over n, i, j of x[n,i+a,j+b,c] dy[n,i,j,o] as one product of matrices.

    XLA's own takes 111 to 224 ms for conv2 at batch 32, and 30 times that inside a loop.
    """
    local = partial(_in_pieces, kernel=kernel, padding=padding)
    mesh = get_abstract_mesh()  # that `train` sets: the devices that share the batch
    if mesh.size <= 1:
        return local(x, dy)
    batch = PartitionSpec(mesh.axis_names)
    summed = lambda x, dy: lax.psum(local(x, dy), mesh.axis_names)  # noqa: E731
    return jax.shard_map(summed, in_specs=(batch, batch), out_specs=PartitionSpec(), check_vma=False)(x, dy)


def _in_pieces(x: Array, dy: Array, kernel: Array, padding: Padding) -> Array:
    """Add the gradients of a few images at a time, whose copies stay in the cache: twice as fast at batch 1000."""
    n = len(x)
    size = _divisor(n, CHUNK)

    def add(piece: Any, total: Array) -> Array:
        few_x, few_dy = (lax.dynamic_slice_in_dim(a, piece * size, size) for a in (x, dy))
        return total + _kernel_gradient(few_x, few_dy, kernel, padding)

    if size == n:
        return _kernel_gradient(x, dy, kernel, padding)
    return lax.fori_loop(0, n // size, add, jnp.zeros(kernel.shape, kernel.dtype))


def _kernel_gradient(x: Array, dy: Array, kernel: Array, padding: Padding) -> Array:
    (kh, kw, c, o), (n, h, w, _) = kernel.shape, dy.shape
    if few_channels(kernel):
        return (_taps(x, kernel, padding).T @ dy.reshape(n * h * w, o)).reshape(kernel.shape)
    if c > 64:  # the copies of x are small beside the product: 225 GFLOP/s, what follows 180 (96 to 128 channels)
        return (dy.reshape(n * h * w, o).T @ _taps(x, kernel, padding)).T.reshape(kernel.shape)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    # x shifted along its rows, dy along its columns: their product holds every tap (12 ms; other ways 15 to 26).
    across = jnp.concatenate([x[:, :, b : b + w] for b in range(kw)], axis=-1)
    down = jnp.pad(dy.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (kh - 1, kh - 1), (0, 0)))
    down = jnp.stack([down[:, :, kh - 1 - a : 2 * (kh - 1) - a + h] for a in range(kh)])
    taps = down.reshape(kh * o, -1) @ across.reshape(-1, kw * c)
    return taps.reshape(kh, o, kw, c).transpose(0, 2, 3, 1)


def sum_rows(rows: Float[Array, "n c"]) -> Float[Array, "c"]:
    """Sum many rows as a product with ones: XLA's own sum costs 5 ms of a step's 44."""
    return (jnp.ones((1, len(rows)), rows.dtype) @ rows)[0]
