"""A convolutional autoencoder with instance normalisation and a squeeze-and-excitation block, ported to NNX."""

import jax.numpy as jnp
import torch
from flax import nnx

from tests.parity.pairs.example import Example, floats
from tests.parity.pairs.nnx_norm import BatchNorm


class TorchSqueezeExcitation(torch.nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc1 = torch.nn.Conv2d(channels, squeezed, 1)
        self.relu = torch.nn.ReLU()
        self.fc2 = torch.nn.Conv2d(squeezed, channels, 1)
        self.gate = torch.nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))


class TorchAutoencoder(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.norm1 = torch.nn.InstanceNorm2d(width, affine=True)
        self.act1 = torch.nn.ReLU()
        self.conv2 = torch.nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(2 * width)
        self.act2 = torch.nn.ReLU()
        self.se = TorchSqueezeExcitation(2 * width, width)
        self.up1 = torch.nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.act3 = torch.nn.Softplus(beta=2)
        self.up2 = torch.nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.se(self.act2(self.norm2(self.conv2(x))))
        x = self.act3(self.up1(x))
        return torch.sigmoid(self.up2(x))


def softplus(x, beta: float):
    """Softplus as PyTorch has it: the identity where beta * x exceeds 20."""
    return jnp.where(beta * x > 20, x, nnx.softplus(beta * x) / beta)


class SqueezeExcitation(nnx.Module):
    def __init__(self, channels: int, squeezed: int, *, rngs: nnx.Rngs):
        self.reduce = nnx.Conv(channels, squeezed, (1, 1), rngs=rngs)
        self.expand = nnx.Conv(squeezed, channels, (1, 1), rngs=rngs)

    def __call__(self, x):
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = self.expand(nnx.relu(self.reduce(y)))
        return x * nnx.sigmoid(y)


class Autoencoder(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.down1 = nnx.Conv(3, width, (4, 4), strides=2, padding=1, rngs=rngs)
        self.instance = nnx.InstanceNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.down2 = nnx.Conv(width, 2 * width, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.batch = BatchNorm(2 * width, rngs=rngs)
        self.excite = SqueezeExcitation(2 * width, width, rngs=rngs)
        # PyTorch's padding of 1, as a padding of the dilated input.
        up = {"strides": (2, 2), "padding": ((2, 2), (2, 2)), "transpose_kernel": True}
        self.up1 = nnx.ConvTranspose(2 * width, width, (4, 4), **up, rngs=rngs)
        self.up2 = nnx.ConvTranspose(width, 3, (4, 4), **up, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.instance(self.down1(x)))
        x = nnx.relu(self.batch(self.down2(x)))
        x = self.excite(x)
        x = softplus(self.up1(x), 2)
        return nnx.sigmoid(self.up2(x))


def autoencoder() -> Example:
    return Example(TorchAutoencoder(4), Autoencoder(4, rngs=nnx.Rngs(0)), (floats(3, 3, 16, 16),))
