"""How the speedrun network is trained and evaluated, in PyTorch. No JAX is imported here."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from parity.torch_trace import channels_first

Tensors = dict[str, torch.Tensor]

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
BIAS_RATE, HEAD_RATE, SGD_MOMENTUM = 0.053, 0.67, 0.85
MOST = 2  # pixels that an image is moved by
WHITENING_SIZE = 23  # the largest images on which the bias of the whitening is trained


class Augmented(NamedTuple):
    """Images of a batch, and the draws for each: its shift down and to the right, and whether it is mirrored."""

    images: np.ndarray  # uint8 [n, h, w, c]
    shifts: np.ndarray  # [n, 2]
    mirrored: np.ndarray  # [n]
    size: int  # that they are resized to


def augmented(given: Augmented, dtype: torch.dtype) -> torch.Tensor:
    """Move, mirror, resize."""
    x = channels_first(given.images).to(dtype) / 255
    height, width = x.shape[2:]
    padded, moved = F.pad(x, (MOST,) * 4, mode="reflect"), []
    for image, (down, right), mirrored in zip(padded, given.shifts.tolist(), given.mirrored.tolist(), strict=True):
        image = image[:, MOST - down :, MOST - right :][:, :height, :width]
        moved.append(image.flip(2) if mirrored else image)
    x = torch.stack(moved)
    return F.interpolate(x, (given.size, given.size), mode="bilinear", antialias=True) if given.size != height else x


def views(x: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """List the views of images in evaluation, and their weights: as they are, shifted diagonally both ways, flipped."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    seen = [(1 / 4, x), (1 / 8, padded[:, :, :height, :width]), (1 / 8, padded[:, :, 2:, 2:])]
    return [*seen, *((weight, view.flip(3)) for weight, view in seen)]


def summed_loss(logits: torch.Tensor, labels: np.ndarray, real: np.ndarray) -> torch.Tensor:
    """Compute the summed cross entropy of the images that are real, a fifth of each label spread over all classes."""
    targets = torch.from_numpy(labels[real]).long()
    return F.cross_entropy(logits[real], targets, label_smoothing=0.2, reduction="sum")


def moments(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean and the deviation of each channel, one part of the images after another."""
    parts = [torch.std_mean(channels_first(some).double() / 255, (0, 2, 3), correction=0)
             for some in np.array_split(images, 1 + len(images) // 1000)]  # fmt: skip
    shares = [len(some) / len(images) for some in np.array_split(images, len(parts))]
    mean = sum((share * one for share, (_, one) in zip(shares, parts, strict=True)), torch.zeros(3).double())
    squares = [share * (d**2 + (m - mean) ** 2) for share, (d, m) in zip(shares, parts, strict=True)]
    return mean, sum(squares, torch.zeros(3).double()).sqrt()


def patch_covariance(images: np.ndarray, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Compute the second moments of normalised patches of 2x2 pixels, in PyTorch's order: channels, rows, columns."""
    total, count = torch.zeros(12, 12, dtype=torch.float64), 0
    for some in np.array_split(images[:5000], 1 + len(images[:5000]) // 500):
        x = (channels_first(some).double() / 255 - mean[:, None, None]) / deviation[:, None, None]
        patches = F.unfold(x, 2).movedim(1, 2).flatten(0, 1)
        total, count = total + patches.T @ patches, count + len(patches)
    return total / count


def constants(images: np.ndarray) -> tuple[Tensors, Callable[[Tensors], Tensors]]:
    """Compute the network's buffers from training images in float64; return also a function to compare such buffers.

    The solver chooses which of a direction and its negative comes first, and the directions of equal variances.
    Whatever it chooses, the directions have the same sum of squares, and what whitens patches has the same covariance.
    """
    mean, deviation = moments(images)
    covariance = patch_covariance(images, mean, deviation)
    variances, directions = torch.linalg.eigh(covariance)
    kernel = (directions / (variances + 5e-3).sqrt()).flip(1).T.reshape(12, 3, 2, 2)

    def invariants(buffers: Tensors) -> Tensors:
        rows = buffers["whiten.weight"].flatten(1)
        squares = {"whiten.weight.squares": rows.T @ rows, "whiten.weight.covariance": rows @ covariance @ rows.T}
        return {name: tensor for name, tensor in buffers.items() if name != "whiten.weight"} | squares

    buffers = {"normalise.mean": mean, "normalise.deviation": deviation, "whiten.weight": torch.cat([kernel, -kernel])}
    return buffers, invariants


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of a matrix to about 1."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.size(0) > matrix.size(1)
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(3):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Scale each kernel to the norm sqrt(outputs), then subtract its orthogonalised Nesterov momentum."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                update = p.grad + group["momentum"] * buffer
                p.mul_(len(p) ** 0.5 / p.norm())
                p.sub_(group["lr"] * orthogonalised(update.flatten(1)).view_as(p))


class Falling:
    """Two optimizers as one. Each group's learning rate falls linearly to 0 in its steps; then it stays as it is."""

    def __init__(self, muon: Muon, sgd: torch.optim.SGD, taken: int) -> None:
        self.optimizers, self.taken = (muon, sgd), taken
        self.param_groups = [*muon.param_groups, *sgd.param_groups]
        self.state = muon.state = sgd.state

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for one in self.optimizers:
            one.zero_grad()

    def step(self) -> None:
        """Take a step."""
        for group in self.param_groups:
            left = max(0, group["steps"] - self.taken)
            group["lr"] = group["first"] * left / group["steps"] if left else 0.0
            for p in group["params"] if not left else ():
                p.grad = None
        for one in self.optimizers:
            one.step()
        self.taken += 1


def optimizer(
    params: Mapping[str, torch.Tensor],
    rate: float,
    momentum: float,
    batch: int,
    steps: int,
    whitening: int,
    taken: int = 0,
) -> Falling:
    """Make the optimizer of a training, some steps of which are already taken.

    rate: of the convolutions.  whitening: steps that the bias of the whitening takes.
    """

    def group(rate: float, steps: int, *names: str) -> dict[str, Any]:
        decay = 1e-6 * batch / rate
        return {"params": [params[n] for n in names], "first": rate, "steps": steps, "lr": rate, "weight_decay": decay}

    kernels = [p for name, p in params.items() if name.startswith("conv")]
    muon = Muon(kernels, rate, momentum)
    muon.param_groups[0] |= {"first": rate, "steps": steps}
    groups = (
        group(BIAS_RATE, steps, *(name for name in params if name.startswith("norm"))),
        group(BIAS_RATE, whitening, "whiten.bias"),
        group(HEAD_RATE, steps, "head.weight"),
    )
    return Falling(muon, torch.optim.SGD(groups, momentum=SGD_MOMENTUM, nesterov=True), taken)
