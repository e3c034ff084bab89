"""A U-Net of two levels, one of which goes up by a 2x2, the other by a 3x3 transposed convolution."""

import flax.linen as nn
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.parity.pairs.example import Example, floats
from tests.parity.pairs.linen_norm import BatchNorm


class TorchDoubleConv(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.double_conv = torch.nn.Sequential(
            torch.nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            torch.nn.BatchNorm2d(out_channels),
            torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            torch.nn.BatchNorm2d(out_channels),
            torch.nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class TorchUp(torch.nn.Module):
    def __init__(self, in_channels, out_channels, up):
        super().__init__()
        self.up = up
        self.conv = TorchDoubleConv(in_channels, out_channels)

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class TorchUNet(torch.nn.Module):
    def __init__(self, in_channels, width, classes):
        super().__init__()
        self.inc = TorchDoubleConv(in_channels, width)
        self.down1 = TorchDoubleConv(width, 2 * width)
        self.down2 = TorchDoubleConv(2 * width, 4 * width)
        up1 = torch.nn.ConvTranspose2d(4 * width, 2 * width, kernel_size=2, stride=2)
        self.up1 = TorchUp(4 * width, 2 * width, up1)
        up2 = torch.nn.ConvTranspose2d(2 * width, width, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.up2 = TorchUp(2 * width, width, up2)
        self.outc = torch.nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


class DoubleConv(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        for _ in range(2):
            x = nn.Conv(self.features, (3, 3), use_bias=False)(x)
            x = nn.relu(BatchNorm(use_running_average=not train)(x))
        return x


class UNet(nn.Module):
    width: int
    classes: int

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x1 = DoubleConv(self.width)(x, train)
        x2 = DoubleConv(2 * self.width)(nn.max_pool(x1, (2, 2), strides=(2, 2)), train)
        x3 = DoubleConv(4 * self.width)(nn.max_pool(x2, (2, 2), strides=(2, 2)), train)
        x = nn.ConvTranspose(2 * self.width, (2, 2), strides=(2, 2))(x3)
        x = DoubleConv(2 * self.width)(jnp.concatenate([x2, x], axis=-1), train)
        # PyTorch's padding of 1 and output padding of 1, as paddings of the dilated input.
        x = nn.ConvTranspose(self.width, (3, 3), strides=(2, 2), padding=((1, 2), (1, 2)), transpose_kernel=True)(x)
        x = DoubleConv(self.width)(jnp.concatenate([x1, x], axis=-1), train)
        return nn.Conv(self.classes, (1, 1))(x)


def unet() -> Example:
    return Example(TorchUNet(3, 4, 5), UNet(4, 5), (floats(2, 3, 16, 16),))
