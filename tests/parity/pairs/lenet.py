"""LeNet-5, ported to Linen and to NNX."""

import flax.linen as nn
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats


class TorchLeNet5(torch.nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = torch.nn.Conv2d(4, 8, 5)
        self.fc1 = torch.nn.Linear(8 * 2 * 2, 24)
        self.fc2 = torch.nn.Linear(24, 16)
        self.fc3 = torch.nn.Linear(16, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class LeNet5(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (5, 5))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(8, (5, 5), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(24)(x))
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(self.classes)(x)


class NNXLeNet5(nnx.Module):
    def __init__(self, classes: int = 10, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 4, (5, 5), rngs=rngs)
        self.body = nnx.Conv(4, 8, (5, 5), padding="VALID", rngs=rngs)
        self.hidden_a = nnx.Linear(32, 24, rngs=rngs)
        self.hidden_b = nnx.Linear(24, 16, rngs=rngs)
        self.classifier = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (2, 2), strides=(2, 2))
        x = nnx.max_pool(nnx.relu(self.body(x)), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.hidden_a(x))
        x = nnx.relu(self.hidden_b(x))
        return self.classifier(x)


def lenet5() -> Example:
    return Example(TorchLeNet5(), LeNet5(), (floats(3, 1, 16, 16),))


def lenet5_nnx() -> Example:
    return Example(TorchLeNet5(), NNXLeNet5(rngs=nnx.Rngs(0)), (floats(3, 1, 16, 16),))
