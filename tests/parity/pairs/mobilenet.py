"""MobileNetV2: torchvision's, and a port to NNX."""

import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats
from tests.parity.pairs.nnx_norm import BatchNorm

SETTINGS = ((1, 4, 1, 1), (3, 8, 2, 2), (3, 12, 1, 2))  # expansion, channels, blocks, stride


class Conv2dNormActivation(torch.nn.Sequential):
    def __init__(self, inp, oup, kernel_size=3, stride=1, groups=1):
        padding = (kernel_size - 1) // 2
        super().__init__(
            torch.nn.Conv2d(inp, oup, kernel_size, stride, padding, groups=groups, bias=False),
            torch.nn.BatchNorm2d(oup),
            torch.nn.ReLU6(inplace=True),
        )


class TorchInvertedResidual(torch.nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio):
        super().__init__()
        hidden_dim = inp * expand_ratio
        self.use_res_connect = stride == 1 and inp == oup
        layers = []
        if expand_ratio != 1:
            layers.append(Conv2dNormActivation(inp, hidden_dim, kernel_size=1))
        layers += [
            Conv2dNormActivation(hidden_dim, hidden_dim, stride=stride, groups=hidden_dim),
            torch.nn.Conv2d(hidden_dim, oup, 1, bias=False),
            torch.nn.BatchNorm2d(oup),
        ]
        self.conv = torch.nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class TorchMobileNetV2(torch.nn.Module):
    def __init__(self, settings, first, last, num_classes, dropout=0.2):
        super().__init__()
        features = [Conv2dNormActivation(3, first, stride=2)]
        inp = first
        for t, c, n, s in settings:
            for i in range(n):
                features.append(TorchInvertedResidual(inp, c, s if i == 0 else 1, t))
                inp = c
        features.append(Conv2dNormActivation(inp, last, kernel_size=1))
        self.features = torch.nn.Sequential(*features)
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(p=dropout), torch.nn.Linear(last, num_classes))

    def forward(self, x):
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class ConvNorm(nnx.Module):
    def __init__(self, cin: int, cout: int, size: int = 1, strides: int = 1, groups: int = 1, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            cin, cout, (size, size), strides, padding=size // 2, feature_group_count=groups, use_bias=False, rngs=rngs
        )
        self.norm = BatchNorm(cout, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class InvertedResidual(nnx.Module):
    def __init__(self, cin: int, cout: int, strides: int, expansion: int, *, rngs: nnx.Rngs):
        hidden = cin * expansion
        self.residual = strides == 1 and cin == cout
        self.expand = ConvNorm(cin, hidden, rngs=rngs) if expansion != 1 else None
        self.depthwise = ConvNorm(hidden, hidden, 3, strides, groups=hidden, rngs=rngs)
        self.project = ConvNorm(hidden, cout, rngs=rngs)

    def __call__(self, x):
        y = x if self.expand is None else nnx.relu6(self.expand(x))
        y = nnx.relu6(self.depthwise(y))
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    def __init__(self, settings, first: int, last: int, classes: int, dropout: float = 0.2, *, rngs: nnx.Rngs):
        self.stem = ConvNorm(3, first, 3, strides=2, rngs=rngs)
        self.blocks = nnx.List()
        cin = first
        for expansion, cout, blocks, strides in settings:
            for i in range(blocks):
                self.blocks.append(InvertedResidual(cin, cout, strides if i == 0 else 1, expansion, rngs=rngs))
                cin = cout
        self.head = ConvNorm(cin, last, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = nnx.Linear(last, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.head(x))
        x = jnp.mean(x, axis=(1, 2))
        return self.classifier(self.dropout(x))


def mobilenetv2() -> Example:
    sizes = (SETTINGS, 6, 16, 10)
    return Example(TorchMobileNetV2(*sizes), MobileNetV2(*sizes, rngs=nnx.Rngs(0)), (floats(3, 3, 16, 16),))
