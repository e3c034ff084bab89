"""Augmentation of images as pure functions of keys: translations with reflection, flips that alternate, sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8, UInt32


class View(NamedTuple):
    """Another view of an image, shifted or mirrored, and the weight of the network's output for it."""

    weight: float
    down: int = 0
    right: int = 0
    mirrored: bool = False


ONE_VIEW = (View(1.0),)


def _framed(images: UInt8[Array, "n h w c"], most: int) -> UInt8[Array, "n h+2*{most} w+2*{most} c"]:
    """Extend images by `most` reflected pixels at each border."""
    return jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="reflect")


def _keys(key: Key[Array, ""], indices: Int32[Array, "n"]) -> Key[Array, "n"]:
    """Make a key for each image of a data set."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def viewed(images: UInt8[Array, "n h w c"], view: View) -> UInt8[Array, "n h w c"]:
    """Give the images of a view: moved, the border reflected, then mirrored."""
    _, h, w, _ = images.shape
    most = max(abs(view.down), abs(view.right))
    moved = _framed(images, most)[:, most - view.down :, most - view.right :][:, :h, :w]
    return moved[:, :, ::-1] if view.mirrored else moved


def resized(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """Resize scaled images linearly, with antialiasing: PyTorch's `interpolate(mode="bilinear", antialias=True)`."""
    return x if x.shape[1:3] == (size, size) else jax.image.resize(x, (len(x), size, size, x.shape[3]), "linear")


def shifted(images: UInt8[Array, "n h w c"], shifts: Int32[Array, "n 2"], most: int) -> UInt8[Array, "n h w c"]:
    """Move each image down and to the right by its shifts, of -most to most pixels; the border is reflected."""
    size = images.shape[1:]

    def cut(image: Array, shift: Array) -> Array:
        return lax.dynamic_slice(image, (most - shift[0], most - shift[1], jnp.zeros_like(shift[0])), size)

    return jax.vmap(cut)(_framed(images, most), shifts)


def random_shifts(key: Key[Array, ""], indices: Int32[Array, "n"], most: int) -> Int32[Array, "n 2"]:
    """Draw a shift of -most to most pixels along both axes for each image of a data set."""
    draw = lambda key: jax.random.randint(key, (2,), -most, most + 1, jnp.int32)  # noqa: E731
    return jax.vmap(draw)(_keys(key, indices))


def flipped(images: UInt8[Array, "n h w c"], mirrored: Bool[Array, "n"]) -> UInt8[Array, "n h w c"]:
    """Mirror some of the images, left to right."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def alternating(key: Key[Array, ""], indices: Int32[Array, "n"], epoch: UInt32[Array, ""]) -> Bool[Array, "n"]:
    """Tell which images of a data set are mirrored in an epoch: each in every other one, the first drawn at random.

    Random flips show some images three times one way before the other (Jordan 2024, arXiv 2404.00498, section 3.6).
    """
    first = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32) & 1)(_keys(key, indices))
    return (first ^ (epoch.astype(jnp.uint32) & 1)) == 1
