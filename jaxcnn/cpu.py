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

CHUNK = 4  # images: a step takes 38 ms, with the whole batch of 32 42; at 128 images 122 and 150, at 512 480 and 750
EVALUATED = 32  # images, dropout off: at batch 128 it takes 10.5 ms, with the whole batch 12.8; at 512 40 and 46

# jaxlib 0.10 gives the CPU's convolutions to YNNPACK, which in training runs them on one thread. With this option they
# go to Eigen, on all threads: conv2 at batch 32 takes 4.1 ms, not 8.3. Evaluation keeps YNNPACK, which fuses the whole
# network: 26 ms, not 34, at batch 128. Only this version is known to have the option.
COMPILER_OPTIONS = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if version("jaxlib").startswith("0.10.")
    else None
)


def in_chunks(stage: Callable[..., Any], most: int = CHUNK) -> Callable[..., Any]:
    """Make a stage of a network work through a batch at most `most` images at a time on the CPU.

    Its data then stays in the cache, forward and backward. On any other platform the stage is unchanged.

    stage: a function of variables and of pytrees whose leaves start with the batch axis; each image's output depends on
        that image only.
    """

    def chunked(variables: Any, *batch: Any) -> Any:
        n = len(jax.tree.leaves(batch)[0])
        size = _divisor(n, most)
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)
        outputs = lax.map(lambda chunk: stage(variables, *chunk), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[2:]), outputs)

    return lambda *given: lax.platform_dependent(*given, cpu=partial(_on_each_device, chunked), default=stage)


def _on_each_device(stage: Callable[..., Any], variables: Any, *batch: Any, is_sum: bool = False) -> Any:
    """Apply a function on each of the devices that share a batch, to its part. is_sum: add the results.

    Left to XLA, a loop over the batch would send each part to all devices.
    """
    mesh = get_abstract_mesh()  # that `train` sets
    if mesh.size <= 1 or mesh.manual_axes:
        return stage(variables, *batch)
    share, same = PartitionSpec(mesh.axis_names), PartitionSpec()
    summed = lambda *given: lax.psum(stage(*given), mesh.axis_names)  # noqa: E731
    in_specs, out_specs = (same, *(share for _ in batch)), same if is_sum else share
    return jax.shard_map(summed if is_sum else stage, in_specs=in_specs, out_specs=out_specs, check_vma=False)(
        variables, *batch
    )


def _divisor(n: int, most: int) -> int:
    return max(size for size in range(1, most + 1) if n % size == 0)


def few_channels(kernel: Float[Array, "kh kw c o"]) -> bool:
    """Tell if an output pixel sees no more numbers than it has channels: few enough to be copied side by side."""
    kh, kw, c, o = kernel.shape
    return kh * kw * c <= o


def as_product(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"]) -> bool:
    """Tell if a convolution is faster as a product: it has few channels, few pixels, or both few, in a chunk.

    With 32 channels the copies of x that a product needs cost more than it saves, unless they stay in the cache.
    """
    return few_channels(kernel) or few_pixels(x) or (max(kernel.shape[2:]) <= 32 and len(x) <= CHUNK)


def few_pixels(x: Float[Array, "n h w c"]) -> bool:
    """Tell if images are so small that XLA's convolution spends its time on overhead for each.

    For 500 images of 2x2 pixels and 128 channels it takes 123 ms, one product 8.
    """
    return x.shape[1] * x.shape[2] < 16


def _beside(x: Float[Array, "n h w c"], kw: int, padding: Padding) -> Float[Array, "n rows columns {kw}*c"]:
    """Pad x, and put the pixels that a row of the kernel sees side by side."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    columns = x.shape[2] - kw + 1
    return jnp.concatenate([x[:, :, b : b + columns] for b in range(kw)], axis=-1)


def _taps(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], padding: Padding
) -> Float[Array, "n rows columns kh*kw*c"]:
    """Gather the part of x that the kernel sees at each output pixel."""
    (kh, kw), x = kernel.shape[:2], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(kh) for b in range(kw)], axis=-1)


def conv2d(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve by one product: conv1 of the tutorial takes 0.14 ms for four images, XLA's convolution 0.33."""
    kh, kw, c, o = kernel.shape
    if few_channels(kernel) or few_pixels(x):
        return _product(_taps(x, kernel, padding), kernel.reshape(-1, o))
    # Multiply each row of x by each row of the kernel, the results side by side; then add those that belong together.
    rows = _product(_beside(x, kw, padding), kernel.transpose(1, 2, 0, 3).reshape(kw * c, kh * o))
    h = rows.shape[1] - kh + 1
    return sum((rows[:, a : a + h, :, a * o : (a + 1) * o] for a in range(1, kh)), rows[:, :h, :, :o])


def _product(x: Float[Array, "n h w k"], matrix: Float[Array, "k o"]) -> Float[Array, "n h w o"]:
    return jnp.matmul(x.reshape(-1, len(matrix)), matrix, precision=lax.Precision.HIGHEST).reshape(*x.shape[:3], -1)


def kernel_gradient(x: Array, kernel: Array, dy: Array, padding: Padding) -> Array:
    """Compute dkernel[a,b,c,o] = sum over n, i, j of x[n,i+a,j+b,c] dy[n,i,j,o] as one product of matrices.

    XLA's own takes 111 to 224 ms for conv2 at batch 32, and 30 times that inside a loop.
    """
    return _on_each_device(partial(_in_pieces, padding=padding), kernel, x, dy, is_sum=True)


def _in_pieces(kernel: Array, x: Array, dy: Array, padding: Padding) -> Array:
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
    (kh, kw, c, o), h = kernel.shape, dy.shape[1]
    if few_channels(kernel):
        return _transposed_product(_taps(x, kernel, padding), dy).reshape(kernel.shape)
    rest = input_padding(kernel, padding)
    if o > 64 or min(map(min, rest)) < 0:  # 230 GFLOP/s, what follows 190 (96 to 128 channels, two cores)
        beside = _beside(x, kw, padding)
        return jnp.stack([_transposed_product(beside[:, a : a + h], dy).reshape(kw, c, o) for a in range(kh)])
    # dy shifted along its rows, as for the gradient of x, x along its columns: their product holds every tap.
    beside = _beside(dy, kw, rest)
    x = jnp.pad(x, ((0, 0), (kh - 1, kh - 1), (0, 0), (0, 0)))
    above = jnp.concatenate([x[:, a : a + beside.shape[1]] for a in range(kh)], axis=-1)
    taps = _transposed_product(above, beside).reshape(kh, c, kw, o)
    return taps[:, :, ::-1].transpose(0, 2, 1, 3)


def _transposed_product(x: Float[Array, "n h w k"], y: Float[Array, "n h w o"]) -> Float[Array, "k o"]:
    return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def input_padding(kernel: Float[Array, "kh kw c o"], padding: Padding) -> Padding:
    """Give the padding of dy in the convolution that is the gradient of a convolution's input."""
    (kh, kw), ((top, bottom), (left, right)) = kernel.shape[:2], padding
    return (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)


def sum_rows(rows: Float[Array, "n c"]) -> Float[Array, "c"]:
    """Sum many rows as a product with ones: XLA's own sum costs 5 ms of a step's 44."""
    return (jnp.ones((1, len(rows)), rows.dtype) @ rows)[0]
