"""The tutorial's class in PyTorch, its widths arguments. No JAX is imported here."""

import torch
from torch import nn


class CNN(nn.Module):
    """The tutorial's network; the names of its modules are the names of `jaxcnn.CNN`'s layers."""

    def __init__(self, channels: int = 32, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, kernel_size=(3, 3), stride=1, padding=1)
        self.act1 = nn.ReLU()
        self.drop1 = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=(3, 3), stride=1, padding=1)
        self.act2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(kernel_size=(2, 2))
        self.flat = nn.Flatten()
        self.fc3 = nn.Linear(channels * 16 * 16, hidden)
        self.act3 = nn.ReLU()
        self.drop3 = nn.Dropout(0.5)
        self.fc4 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits [n, classes] of images [n, 3, 32, 32] scaled to 0..1."""
        x = self.drop1(self.act1(self.conv1(x)))
        x = self.pool2(self.act2(self.conv2(x)))
        x = self.drop3(self.act3(self.fc3(self.flat(x))))
        return self.fc4(x)
