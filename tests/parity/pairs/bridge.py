"""Ports that are part Linen, part NNX."""

import flax.linen as nn
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats


class TorchClassifier(torch.nn.Module):
    def __init__(self, channels, hidden, classes, dropout=0.25):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.fc1 = torch.nn.Linear(channels, hidden)
        self.dropout = torch.nn.Dropout(dropout)
        self.fc2 = torch.nn.Linear(hidden, classes)

    def forward(self, x):
        x = F.silu(self.conv1(x))
        x = F.silu(self.conv2(x))
        x = x.mean(dim=(2, 3))
        x = self.dropout(F.silu(self.fc1(x)))
        return self.fc2(x)


class Encoder(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.Conv(self.channels, (3, 3), strides=2, padding=1)(x))
        x = nn.silu(nn.Conv(self.channels, (3, 3))(x))
        return jnp.mean(x, axis=(1, 2))


class Head(nnx.Module):
    def __init__(self, features: int, hidden: int, classes: int, dropout: float = 0.25, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x, deterministic: bool | None = None):
        x = self.dropout(nnx.silu(self.linear(x)), deterministic=deterministic)
        return self.out(x)


class NNXClassifier(nnx.Module):
    def __init__(self, channels: int, hidden: int, classes: int, *, rngs: nnx.Rngs):
        encoder = nnx.bridge.ToNNX(Encoder(channels), rngs=rngs)
        self.encoder = encoder.lazy_init(jnp.zeros((1, 8, 8, 3)))
        self.head = Head(channels, hidden, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.encoder(x))


class LinenClassifier(nn.Module):
    channels: int
    hidden: int
    classes: int

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = Encoder(self.channels)(x)
        head = nnx.bridge.to_linen(Head, self.channels, self.hidden, self.classes)
        return head(x, deterministic=deterministic)


def bridge_nnx() -> Example:
    sizes = (4, 8, 5)
    return Example(TorchClassifier(*sizes), NNXClassifier(*sizes, rngs=nnx.Rngs(0)), (floats(3, 3, 8, 8),))


def bridge_linen() -> Example:
    sizes = (4, 8, 5)
    return Example(TorchClassifier(*sizes), LinenClassifier(*sizes), (floats(3, 3, 8, 8),))
