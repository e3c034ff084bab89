"""The tutorial's network, a pure Linen module. Every name in it is a name of PyTorch's, and can be captured by it."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, UInt32

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
    def __call__(self, x: Array, key: Key[Array, ""] | None, rows: UInt32[Array, "n"] | None = None) -> Array:
        """X, some of its elements zero and the rest scaled by 1 / (1 - rate)."""
        return x if key is None else layers.dropout(x, jax.random.fold_in(key, self.index), self.rate, rows)


class Conv(nn.Module):
    """PyTorch's `Conv2d(c, features, 3, padding=1)`, initial distribution included; `nn.Conv` but for its gradients.

    Another kernel size or a stride is for `nn.Conv`: what makes this one faster on the CPU holds for stride 1.
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        """The convolution of x, bias added."""
        draw = layers.torch_uniform(9 * x.shape[-1])
        kernel = self.param("kernel", draw, (3, 3, x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", draw, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return layers.add_bias(layers.conv2d(x, kernel, ((1, 1), (1, 1))), bias)


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n h*w*c"]:
    """One row an image, in (H, W, C) order; PyTorch's is (C, H, W), so `fc3`'s inputs are permuted between the two."""
    return x.reshape(len(x), -1)


# float32 products are float32 on every platform: XLA's default is TF32 on a GPU and bfloat16 on a TPU (jax#18934).
EXACT = lax.Precision.HIGHEST


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
        self,
        x: Float[Array, "n h w 3"] | Float[Array, "n k"],
        dropout_key: Key[Array, ""] | None = None,
        part: Literal["convolutions", "dense"] | None = None,
        rows: UInt32[Array, "n"] | None = None,
    ) -> Float[Array, "n classes"] | Float[Array, "n k"]:
        """Logits of images scaled to 0..1. Dropout is on where its key is given: masks are functions of it alone.

        part: `convolutions` ends with `flat`, `dense` goes on from there; both where it is None.
        rows: the places of x in the batch that the masks are for, where it is not all of it.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if part != "dense":
            x = Conv(self.channels, **types, name="conv1")(x)
            x = Function(nn.relu, name="act1")(x)
            x = Dropout(0.3, 0, name="drop1")(x, dropout_key, rows)
            x = Conv(self.channels, **types, name="conv2")(x)
            x = Function(nn.relu, name="act2")(x)
            x = Function(layers.max_pool, name="pool2")(x)
            x = Function(flatten, name="flat")(x)
        if part == "convolutions":
            return x
        x = dense("fc3", self.hidden, x, **types)
        x = Function(nn.relu, name="act3")(x)
        x = Dropout(0.5, 1, name="drop3")(x, dropout_key, rows)
        return dense("fc4", self.classes, x, **types)


@partial(jax.jit, static_argnums=0)  # one program: op by op it takes four seconds
def initial_params(model: CNN, key: Key[Array, ""]) -> Params:
    """Parameters of `model.param_dtype`, drawn as PyTorch draws them."""
    return model.init(key, jnp.zeros((1, 32, 32, 3), model.param_dtype))["params"]


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
