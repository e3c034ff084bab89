"""The programs in PyTorch that the benchmark compares, as a good PyTorch program has them. No JAX is imported here."""

from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from case import Case, Run, fixed_data
from torch import Tensor, nn

from parity.twins.speedrun import Speedrun
from parity.twins.speedrun_training import MOST, WHITENING_SIZE, constants, optimizer
from parity.twins.tutorial import CNN


def torch_runner(case: Case, kind: str) -> Run:
    """Return a run of the recipe's loop in PyTorch."""
    torch.manual_seed(0)
    images, labels = fixed_data(case.batch_size)
    order = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=order)
    y = torch.tensor(labels).long()
    if case.recipe not in PROGRAMS:
        raise KeyError(f"no PyTorch program for {case.recipe}: name one in PROGRAMS of scripts/torch_contenders.py")
    kind_of_network, steps = PROGRAMS[case.recipe]
    network = kind_of_network(*case.config.widths)
    network.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs want a dtype with it
    network.train(case.task == "training")
    forward = torch.compile(network) if kind == "torch-compile" else network
    taken: Iterator[Any]
    if case.task == "training":
        taken = steps(network, forward, x, y, case)
    elif case.task == "prediction":
        taken = (predict_in_torch(forward, image, order) for image in cycle(images))
    else:
        taken = map(forward, cycle(x.split(case.batch_size)))

    @torch.inference_mode(case.task != "training")
    def run(steps: int) -> None:
        for _ in islice(taken, steps):
            pass

    return run


def predict_in_torch(forward: Any, image: np.ndarray, order: Any) -> np.ndarray:
    """Return the probabilities of an image's classes."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255).contiguous(memory_format=order)
    return forward(x).softmax(1).numpy()


def tutorial(
    network: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, case: Case
) -> Iterator[None]:
    """Train by the tutorial's recipe, an item for each step."""
    sgd = torch.optim.SGD(network.parameters(), lr=case.config.learning_rate, momentum=case.config.momentum)
    for batch, targets in cycle(zip(images.split(case.batch_size), labels.split(case.batch_size), strict=True)):
        sgd.zero_grad()
        F.cross_entropy(forward(batch), targets).backward()
        sgd.step()
        yield


def speedrun(
    network: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, case: Case
) -> Iterator[None]:
    """Train by the recipe of speedrun: shifted and mirrored images, smoothed labels, Muon for the convolutions."""
    # With other values a channel may come out constant, and batch norm then divides by almost zero.
    buffers, _ = constants((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    network.load_state_dict(buffers, strict=False)
    take = moved_and_mirrored(images)
    rates = case.config.learning_rate, case.config.momentum
    steps, is_early = case.config.epochs * case.per_epoch, case.size <= WHITENING_SIZE
    network.get_parameter("whiten.bias").requires_grad_(is_early)
    falling = optimizer(
        dict(network.named_parameters()), *rates, case.batch_size, steps, whitening=steps if is_early else 0
    )
    mirrored = torch.rand(len(images)) < 0.5
    per_epoch = len(images) // case.batch_size
    for step in count():
        if step % per_epoch == 0:
            order, mirrored = torch.randperm(len(images)).split(case.batch_size), ~mirrored
        chosen = order[step % per_epoch]
        batch = take(chosen, mirrored[chosen])
        if case.size != batch.shape[-1]:
            batch = F.interpolate(batch, (case.size, case.size), mode="bilinear", antialias=True)
        falling.zero_grad()
        F.cross_entropy(forward(batch), labels[chosen], label_smoothing=0.2, reduction="sum").backward()
        falling.step()
        yield


def moved_and_mirrored(images: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a function of indices and flips that returns those images, each shifted at random.

    One gather by index arithmetic, in the images' own order in memory: 16 ms for 1,000 images on two cores. The 25
    masked copies of airbench94 take 340, or 100 on bytes.
    """
    size, last = images.shape[-1], images.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(images, (MOST,) * 4, mode="reflect")
    padded = padded.permute(0, 2, 3, 1).contiguous() if last else padded.contiguous()

    def take(chosen: Tensor, mirrored: Tensor) -> Tensor:
        down, right = torch.randint(0, 2 * MOST + 1, (2, len(chosen), 1))
        along = torch.arange(size)[None]
        rows, columns = down + along, right + torch.where(mirrored[:, None], size - 1 - along, along)
        if last:
            return padded[chosen[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        channels = torch.arange(padded.shape[1])
        return padded[
            chosen[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]

    return take


PROGRAMS: dict[str, tuple[type[nn.Module], Callable[..., Iterator[None]]]] = {  # by recipe: the network, its training
    "tutorial": (CNN, tutorial),
    "speedrun": (Speedrun, speedrun),
    "speedrun-large": (Speedrun, speedrun),
}
