"""VGG with batch normalisation."""

import flax.linen as nn
import torch

from tests.parity.pairs.example import Example, floats
from tests.parity.pairs.linen_norm import BatchNorm

PLAN = (4, "M", 8, "M", 12, 12, "M")


class TorchVGG(torch.nn.Module):
    def __init__(self, plan, hidden, classes, dropout=0.5):
        super().__init__()
        layers, channels = [], 3
        for width in plan:
            if width == "M":
                layers += [torch.nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                conv = torch.nn.Conv2d(channels, width, kernel_size=3, padding=1)
                layers += [conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU(inplace=True)]
                channels = width
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(channels * 2 * 2, hidden),
            torch.nn.ReLU(inplace=True),
            torch.nn.Dropout(p=dropout),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(inplace=True),
            torch.nn.Dropout(p=dropout),
            torch.nn.Linear(hidden, classes),
        )

    def forward(self, x):
        x = self.features(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class VGG(nn.Module):
    plan: tuple[int | str, ...]
    hidden: int
    classes: int
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool):
        for width in self.plan:
            if width == "M":
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.Conv(width, (3, 3))(x)
                x = BatchNorm(use_running_average=not train)(x)
                x = nn.relu(x)
        x = x.reshape((x.shape[0], -1))
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def vgg_bn() -> Example:
    return Example(TorchVGG(PLAN, 16, 10), VGG(PLAN, 16, 10), (floats(3, 3, 16, 16),))
