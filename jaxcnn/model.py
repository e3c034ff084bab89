"""The tutorial's network, a pure Linen module. Every name in it is a name of PyTorch's, and can be captured by it."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from jaxcnn import layers

Params = Any  # {"conv1": {"kernel": ..., "bias": ...}, ...}

PARAMETERS = 4_210_090  # of the tutorial's network: 896 + 9,248 + 4,194,816 + 5,130


class Function(nn.Module):
    """A layer without parameters, a module so that its output has a name to be captured by."""

    function: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The function of x."""
        return self.function(x)


class Dropout(nn.Module):
    """Dropout with a mask of (key, index): layer `index` of a network draws from fold_in(key, index)."""

    rate: float
    index: int

    @nn.compact
    def __call__(self, x: Array, key: Key[Array, ""] | None) -> Array:
        """X, some of its elements zero and the rest scaled by 1 / (1 - rate)."""
        return x if key is None else layers.dropout(x, jax.random.fold_in(key, self.index), self.rate)


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n h*w*c"]:
    """One row an image, in (H, W, C) order; PyTorch's is (C, H, W), so `fc3`'s inputs are permuted between the two."""
    return x.reshape(len(x), -1)


# float32 products are float32 on every platform: XLA's default is TF32 on a GPU and bfloat16 on a TPU (jax#18934).
EXACT = lax.Precision.HIGHEST


def conv3x3(name: str, features: int, x: Float[Array, "n h w c"], **types: Any) -> Array:
    """PyTorch's `Conv2d(c, features, 3, padding=1)`, initial distribution included."""
    draw = layers.torch_uniform(9 * x.shape[-1])
    conv = partial(nn.Conv, conv_general_dilated=layers.conv_general_dilated, kernel_init=draw, bias_init=draw)
    return conv(features, (3, 3), padding=1, precision=EXACT, name=name, **types)(x)


def dense(name: str, features: int, x: Float[Array, "n k"], **types: Any) -> Array:
    """PyTorch's `Linear(k, features)`, initial distribution included."""
    draw = layers.torch_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=draw, bias_init=draw, precision=EXACT, name=name, **types)(x)


class CNN(nn.Module):
    """The network of *Building a Convolutional Neural Network in PyTorch*: 4,210,090 parameters at its default widths.

    channels: of both convolutions.  hidden: width of `fc3`.  classes: width of `fc4`.
    dtype: of the computation; parameters stay in `param_dtype`.
    """

    channels: int = 32
    hidden: int = 512
    classes: int = 10
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w 3"], dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "n classes"]:
        """Logits of images scaled to 0..1. Dropout is on where its key is given: masks are functions of it alone."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = conv3x3("conv1", self.channels, x, **types)
        x = Function(nn.relu, name="act1")(x)
        x = Dropout(0.3, 0, name="drop1")(x, dropout_key)
        x = conv3x3("conv2", self.channels, x, **types)
        x = Function(nn.relu, name="act2")(x)
        x = Function(layers.max_pool, name="pool2")(x)
        x = Function(flatten, name="flat")(x)
        x = dense("fc3", self.hidden, x, **types)
        x = Function(nn.relu, name="act3")(x)
        x = Dropout(0.5, 1, name="drop3")(x, dropout_key)
        return dense("fc4", self.classes, x, **types)


def initial_params(model: CNN, key: Key[Array, ""], image_shape: tuple[int, int, int] = (32, 32, 3)) -> Params:
    """Parameters drawn as PyTorch draws them."""
    return model.init(key, jnp.zeros((1, *image_shape), model.param_dtype))["params"]


def parameter_count(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))


def model_for(params: Params, dtype: Any = jnp.float32) -> CNN:
    """The network that parameters belong to: its widths are read off their shapes."""
    channels, (hidden, classes) = params["conv1"]["kernel"].shape[-1], params["fc4"]["kernel"].shape
    return CNN(channels, hidden, classes, dtype, params["conv1"]["kernel"].dtype)


def scale_pixels(images: Array, dtype: Any = jnp.float32) -> Array:
    """uint8 0..255 to `dtype` 0..1: the network's only preprocessing, the tutorial's `ToTensor`.

    Looked up, since XLA:CPU divides by a reciprocal: 126 of the 256 float32 values would be off by a unit.
    """
    table = jnp.asarray(np.arange(256, dtype=dtype) / np.asarray(255, dtype))
    return table.at[images.astype(jnp.int32)].get(mode="promise_in_bounds")
