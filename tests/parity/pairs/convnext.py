"""A block of ConvNeXt."""

import flax.linen as nn
import torch

from tests.parity.pairs.example import Example, floats


class TorchBlock(torch.nn.Module):
    def __init__(self, dim, layer_scale_init_value=1e-6):
        super().__init__()
        self.dwconv = torch.nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = torch.nn.Linear(dim, 4 * dim)
        self.act = torch.nn.GELU()
        self.pwconv2 = torch.nn.Linear(4 * dim, dim)
        self.gamma = torch.nn.Parameter(layer_scale_init_value * torch.ones(dim))
        self.drop_path = torch.nn.Identity()

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.pwconv2(x)
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        return shortcut + self.drop_path(x)


class Block(nn.Module):
    layer_scale: float = 1e-6

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        y = nn.Conv(dim, (7, 7), feature_group_count=dim)(x)
        y = nn.LayerNorm(epsilon=1e-6)(y)
        y = nn.gelu(nn.Dense(4 * dim)(y), approximate=False)
        y = nn.Dense(dim)(y)
        gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (dim,))
        return x + gamma[None, None, None] * y


def convnext() -> Example:
    return Example(TorchBlock(8), Block(), (floats(2, 8, 9, 9),))
