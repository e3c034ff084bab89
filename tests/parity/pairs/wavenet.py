"""WaveNet's residual blocks, ported to NNX."""

import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats


class TorchResidualBlock(torch.nn.Module):
    def __init__(self, channels, skip_channels, kernel_size, dilation):
        super().__init__()
        self.padding = (kernel_size - 1) * dilation
        self.filter_conv = torch.nn.Conv1d(channels, channels, kernel_size, dilation=dilation)
        self.gate_conv = torch.nn.Conv1d(channels, channels, kernel_size, dilation=dilation)
        self.residual_conv = torch.nn.Conv1d(channels, channels, kernel_size=1)
        self.skip_conv = torch.nn.Conv1d(channels, skip_channels, kernel_size=1)

    def forward(self, x):
        padded = F.pad(x, (self.padding, 0))
        z = torch.tanh(self.filter_conv(padded)) * torch.sigmoid(self.gate_conv(padded))
        return x + self.residual_conv(z), self.skip_conv(z)


class TorchWaveNet(torch.nn.Module):
    def __init__(self, in_channels, channels, skip_channels, kernel_size, dilations):
        super().__init__()
        self.start_conv = torch.nn.Conv1d(in_channels, channels, kernel_size=1)
        self.blocks = torch.nn.ModuleList(
            [TorchResidualBlock(channels, skip_channels, kernel_size, dilation) for dilation in dilations]
        )

    def forward(self, x):
        x = self.start_conv(x)
        total = 0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        return x.transpose(1, 2), total.transpose(1, 2)  # (N, C, L) -> (N, L, C)


class ResidualBlock(nnx.Module):
    def __init__(self, channels: int, skip: int, size: int, dilation: int, *, rngs: nnx.Rngs):
        self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation, padding="CAUSAL", rngs=rngs)
        self.gate = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation, padding="CAUSAL", rngs=rngs)
        self.residual = nnx.Conv(channels, channels, (1,), rngs=rngs)
        self.skip = nnx.Conv(channels, skip, (1,), rngs=rngs)

    def __call__(self, x):
        z = nnx.tanh(self.filter(x)) * nnx.sigmoid(self.gate(x))
        return x + self.residual(z), self.skip(z)


class WaveNet(nnx.Module):
    def __init__(self, features: int, channels: int, skip: int, size: int, dilations, *, rngs: nnx.Rngs):
        self.start = nnx.Conv(features, channels, (1,), rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(channels, skip, size, dilation, rngs=rngs) for dilation in dilations])

    def __call__(self, x):
        x = self.start(x)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return x, jnp.sum(jnp.stack(skips), axis=0)


def wavenet() -> Example:
    sizes = (3, 6, 5, 2, (1, 2, 4))
    x = floats(2, 3, 12)
    options = {"flax_inputs": (x.transpose(0, 2, 1),)}
    return Example(TorchWaveNet(*sizes), WaveNet(*sizes, rngs=nnx.Rngs(0)), (x,), options)
