"""SqueezeNet: torchvision's, and a port to NNX."""

import jax.numpy as jnp
import torch
from flax import nnx

from tests.parity.pairs.example import Example, floats


class TorchFire(torch.nn.Module):
    def __init__(self, inplanes, squeeze_planes, expand1x1_planes, expand3x3_planes):
        super().__init__()
        self.squeeze = torch.nn.Conv2d(inplanes, squeeze_planes, kernel_size=1)
        self.squeeze_activation = torch.nn.ReLU(inplace=True)
        self.expand1x1 = torch.nn.Conv2d(squeeze_planes, expand1x1_planes, kernel_size=1)
        self.expand1x1_activation = torch.nn.ReLU(inplace=True)
        self.expand3x3 = torch.nn.Conv2d(squeeze_planes, expand3x3_planes, kernel_size=3, padding=1)
        self.expand3x3_activation = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class TorchSqueezeNet(torch.nn.Module):
    def __init__(self, width, num_classes, dropout=0.5):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, kernel_size=3, stride=2),
            torch.nn.ReLU(inplace=True),
            torch.nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            TorchFire(width, 4, 6, 6),
            TorchFire(12, 4, 6, 6),
            torch.nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            TorchFire(12, 4, 8, 8),
        )
        self.classifier = torch.nn.Sequential(
            torch.nn.Dropout(p=dropout),
            torch.nn.Conv2d(16, num_classes, kernel_size=1),
            torch.nn.ReLU(inplace=True),
            torch.nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x):
        x = self.classifier(self.features(x))
        return torch.flatten(x, 1)


class Fire(nnx.Module):
    def __init__(self, cin: int, squeeze: int, one: int, three: int, *, rngs: nnx.Rngs):
        self.squeeze = nnx.Conv(cin, squeeze, (1, 1), rngs=rngs)
        self.one = nnx.Conv(squeeze, one, (1, 1), rngs=rngs)
        self.three = nnx.Conv(squeeze, three, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.squeeze(x))
        return jnp.concatenate([nnx.relu(self.one(x)), nnx.relu(self.three(x))], axis=-1)


def ceil_pool(x):
    """Pool windows of 3 at steps of 2, the last of which may be part outside, as with PyTorch's ceil_mode."""
    padding = tuple((0, (size - 3) % 2) for size in x.shape[1:3])
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


class SqueezeNet(nnx.Module):
    def __init__(self, width: int, classes: int, dropout: float = 0.5, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, width, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.fire1 = Fire(width, 4, 6, 6, rngs=rngs)
        self.fire2 = Fire(12, 4, 6, 6, rngs=rngs)
        self.fire3 = Fire(12, 4, 8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Conv(16, classes, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = ceil_pool(nnx.relu(self.stem(x)))
        x = ceil_pool(self.fire2(self.fire1(x)))
        x = self.dropout(self.fire3(x))
        x = nnx.relu(self.head(x))
        return jnp.mean(x, axis=(1, 2))


def squeezenet() -> Example:
    return Example(TorchSqueezeNet(8, 5), SqueezeNet(8, 5, rngs=nnx.Rngs(0)), (floats(2, 3, 33, 33),))
