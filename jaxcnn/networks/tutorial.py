"""The network of *Building a Convolutional Neural Network in PyTorch*. Each layer has its PyTorch name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxcnn import cpu, layers
from jaxcnn.augment import ONE_VIEW
from jaxcnn.layers import BatchKey
from jaxcnn.networks.modules import Conv, Dense, Dropout, Function

PARAMETERS = 4_210_090  # at the default widths: 896 + 9,248 + 4,194,816 + 5,130


class CNN(nn.Module):
    """Two convolutions, pooling and two dense layers: 4,210,090 parameters at the default widths.

    channels: of both convolutions.  hidden: width of `fc3`.  classes: width of `fc4`.
    dtype: of the computation; parameters stay in `param_dtype`.
    """

    views = ONE_VIEW

    channels: int = 32
    hidden: int = 512
    classes: int = 10
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Name the layers."""
        types = self.dtype, self.param_dtype
        self.conv1 = Conv(self.channels, *types)
        self.act1 = Function(nn.relu)
        self.drop1 = Dropout(0.3)
        self.conv2 = Conv(self.channels, *types)
        self.act2 = Function(nn.relu)
        self.pool2 = Function(layers.max_pool)
        self.flat = Function(layers.flatten)
        self.fc3 = Dense(self.hidden, *types)
        self.act3 = Function(nn.relu)
        self.drop3 = Dropout(0.5)
        self.fc4 = Dense(self.classes, *types)

    def features(self, x: Float[Array, "n h w 3"], key: BatchKey | None = None) -> Float[Array, "n k"]:
        """Compute the flattened maps that the dense layers classify."""
        x = self.drop1(self.act1(self.conv1(x)), key)
        x = self.pool2(self.act2(self.conv2(x)))
        return self.flat(x)

    def classify(self, x: Float[Array, "n k"], key: BatchKey | None = None) -> Float[Array, "n classes"]:
        """Compute logits of `features`."""
        x = self.drop3(self.act3(self.fc3(x)), key)
        return self.fc4(x)

    def __call__(self, x: Float[Array, "n h w 3"], key: BatchKey | None = None) -> Float[Array, "n classes"]:
        """Compute logits of images scaled to 0..1. Dropout is on if a key is given."""
        return self.classify(self.features(x, key), key)

    @classmethod
    def from_shapes(cls, shape: Callable[[str, int], tuple[int, ...]]) -> "CNN":
        """Read the widths off a file: `shape(name, axes)` is the shape of an entry that has so many axes."""
        channels = shape("conv1/kernel", 4)[-1]
        hidden, classes = shape("fc4/kernel", 2)
        return cls(channels, hidden, classes)


def forward(
    network: CNN, variables: Any, images: UInt8[Array, "n h w 3"], key: BatchKey | None
) -> tuple[Float[Array, "n classes"], dict[str, Any]]:
    """Compute a training batch's logits as `__call__` does, the first stage in chunks; no variable changes."""

    def features(variables: Any, images: Array, places: Any) -> Array:
        scaled = layers.scale_pixels(images, network.param_dtype)
        return network.apply(variables, scaled, key and key._replace(places=places), method="features")

    x = cpu.in_chunks(features)(variables, images, key and key.places)
    return network.apply(variables, x, key, method="classify"), {}
