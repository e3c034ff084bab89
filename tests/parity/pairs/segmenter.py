"""A segmenter with group normalisation, a dilated branch, and upsampling by interpolation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.parity.pairs.example import Example, floats


class TorchSegmenter(torch.nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = torch.nn.GroupNorm(4, width)
        self.act1 = torch.nn.LeakyReLU(0.2)
        self.pool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
        self.grouped = torch.nn.Conv2d(width, 2 * width, 3, padding=1, groups=2)
        self.norm2 = torch.nn.GroupNorm(4, 2 * width)
        self.act2 = torch.nn.ELU()
        self.context = torch.nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2)
        self.act3 = torch.nn.Hardswish()
        self.smooth = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.fuse = torch.nn.Conv2d(3 * width, width, 3, padding=1)
        self.head = torch.nn.Conv2d(width, classes, 1)

    def forward(self, x):
        size = x.shape[-2:]
        low = self.act1(self.norm1(self.stem(x)))
        y = self.act2(self.norm2(self.grouped(self.pool(low))))
        y = self.smooth(self.act3(self.context(y)))
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = F.relu(self.fuse(torch.cat([low, y], dim=1)))
        return F.interpolate(self.head(y), size=size, mode="nearest")


class Segmenter(nn.Module):
    width: int
    classes: int

    @nn.compact
    def __call__(self, x):
        n, height, width, _ = x.shape
        x = nn.Conv(self.width, (3, 3), strides=2, padding=1, use_bias=False)(x)
        x = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)(x)
        low = nn.leaky_relu(x, 0.2)
        # PyTorch's ceil_mode: a last window that is part outside.
        y = nn.max_pool(low, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)))
        y = nn.Conv(2 * self.width, (3, 3), padding=1, feature_group_count=2)(y)
        y = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)(y)
        y = nn.elu(y)
        y = nn.Conv(2 * self.width, (3, 3), padding=2, kernel_dilation=2)(y)
        y = nn.hard_swish(y)
        y = nn.avg_pool(y, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=False)
        y = jax.image.resize(y, (n, *low.shape[1:3], y.shape[-1]), "bilinear")
        y = nn.Conv(self.width, (3, 3), padding=1)(jnp.concatenate([low, y], axis=-1))
        y = nn.Conv(self.classes, (1, 1))(nn.relu(y))
        return jax.image.resize(y, (n, height, width, self.classes), "nearest")


def segmenter() -> Example:
    return Example(TorchSegmenter(8, 5), Segmenter(8, 5), (floats(2, 3, 16, 16),))
