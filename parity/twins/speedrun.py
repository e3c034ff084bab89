"""The speedrun network in PyTorch, its widths arguments. No JAX is imported here."""

import torch
import torch.nn.functional as F
from torch import nn


class Normalise(nn.Module):
    """Normalises images by channel."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("deviation", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Subtract the mean and divide by the deviation."""
        return (x - self.mean[:, None, None]) / self.deviation[:, None, None]


class Whiten(nn.Module):
    """A 2x2 convolution with a fixed kernel and a trained bias."""

    weight: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(24, 3, 2, 2))
        self.bias = nn.Parameter(torch.zeros(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and add the bias."""
        return F.conv2d(x, self.weight, self.bias)


class BatchNorm(nn.Module):
    """Batch norm with a scale of 1, as a separate module so that its state has only what is used."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise by the batch's statistics in training, by the running ones in evaluation."""
        return F.batch_norm(x, self.running_mean, self.running_var, None, self.bias, self.training, 0.4, 1e-12)


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """The maximum of each channel, without the axes of the image."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take the maxima."""
        return super().forward(x).flatten(1)


class Speedrun(nn.Module):
    """The speedrun network; the names of its modules are the names of `jaxcnn.networks.speedrun`'s layers."""

    def __init__(self, width1: int = 32, width2: int = 96, width3: int = 128, classes: int = 10) -> None:
        super().__init__()
        widths = [24, width1, width1, width2, width2, width3, width3, width3]
        self.normalise, self.whiten, self.act0 = Normalise(), Whiten(), nn.GELU()
        for place in range(1, 8):
            conv = nn.Conv2d(widths[place - 1], widths[place], 3, padding=1, bias=False)
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
            setattr(self, f"conv{place}", conv)
            if place in (1, 3, 5):
                setattr(self, f"pool{place}", nn.MaxPool2d(2))
            setattr(self, f"norm{place}", BatchNorm(widths[place]))
            setattr(self, f"act{place}", nn.GELU())
        self.pool7, self.head = GlobalMaxPool(), nn.Linear(width3, classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits [n, classes] of images [n, 3, 32, 32] scaled to 0..1."""
        x = shortcut = self.act0(self.whiten(self.normalise(x)))
        for place in range(1, 8):
            x = getattr(self, f"conv{place}")(x)
            x = getattr(self, f"pool{place}")(x) if place in (1, 3, 5) else x
            x = getattr(self, f"norm{place}")(x)
            x = getattr(self, f"act{place}")(x + shortcut if place in (2, 4, 7) else x)
            shortcut = x if place in (1, 3, 5) else shortcut
        return self.head(self.pool7(x)) / self.head.in_features
