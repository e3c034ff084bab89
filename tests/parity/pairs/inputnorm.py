"""A classifier that normalises its images itself, ported to NNX."""

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchNormalised(torch.nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.conv = torch.nn.Conv2d(3, width, 3, padding=1)
        self.pool = torch.nn.AvgPool2d(2)
        self.fc = torch.nn.Linear(width * 4 * 4, classes)

    def forward(self, x):
        x = (x / 255 - self.mean) / self.std
        x = self.pool(F.relu(self.conv(x)))
        return F.log_softmax(self.fc(torch.flatten(x, 1)), dim=1)


class Normalised(nnx.Module):
    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, width, (3, 3), padding=1, rngs=rngs)
        self.fc = nnx.Linear(width * 4 * 4, classes, rngs=rngs)

    def __call__(self, x):
        # As PyTorch keeps them: in float32.
        mean, std = (np.float32(values)[None, None, None] for values in (MEAN, STD))
        x = (x / 255 - mean) / std
        x = nnx.relu(self.conv(x))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return jax.nn.log_softmax(self.fc(x.reshape(x.shape[0], -1)), axis=-1)


def inputnorm() -> Example:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8)).astype(np.float32)
    return Example(TorchNormalised(4, 5), Normalised(4, 5, rngs=nnx.Rngs(0)), (images,))
