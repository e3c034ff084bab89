"""PyTorch's side of training: single steps, and a run with JAX's batches and dropout masks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from jaxtyping import Array

import jaxcnn
from jaxcnn import train
from jaxcnn.model import Params, model_for
from parity.cases import SEED, Case, dropout_masks
from parity.passes import Arrays
from parity.torch_model import CNN, pixels, set_masks, twin


def batch_loss(network: CNN, images: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The mean cross entropy of images, uint8 [n, 32, 32, 3]."""
    return torch.nn.functional.cross_entropy(network(pixels(images, dtype)), torch.from_numpy(labels).long())


def snapshot(network: CNN, optimizer: torch.optim.SGD, loss_sum: float) -> Arrays:
    """Copies of the parameters, of the momentum buffers where there are any, and the summed loss."""
    named = {name: p.detach().numpy().copy() for name, p in network.named_parameters()}
    states = {name: optimizer.state[p].get("momentum_buffer") for name, p in network.named_parameters()}
    buffers = {f"{name}.momentum": buffer.numpy().copy() for name, buffer in states.items() if buffer is not None}
    return {**named, **buffers, "loss": np.array(loss_sum)}


def single_steps(
    case: Case, buffers: Arrays, optimizers: Mapping[str, dict[str, Any]], dtype: torch.dtype
) -> dict[str, Arrays]:  # fmt: skip
    """What each optimizer makes of one and the same gradient, from these momentum buffers where it has any."""
    assert case.key is not None
    keep = dropout_masks(model_for(case.params), case.key, len(case.images))
    network = twin(case.params, dtype, {name: np.asarray(mask)[case.real] for name, mask in keep.items()})
    loss = batch_loss(network, case.images[case.real], case.labels[case.real], dtype)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    before = [p.detach().clone() for p in network.parameters()]
    found = {}
    for kind, options in optimizers.items():
        learning_rate, rest = options["learning_rate"], {k: v for k, v in options.items() if k != "learning_rate"}
        optimizer = torch.optim.SGD(network.parameters(), learning_rate, **rest)
        for (name, p), start, gradient in zip(network.named_parameters(), before, gradients, strict=True):
            p.data, p.grad = start.clone(), gradient.clone()
            if "momentum" in options:
                optimizer.state[p]["momentum_buffer"] = torch.tensor(buffers[name], dtype=dtype)
        optimizer.step()
        found[kind] = snapshot(network, optimizer, loss.item() * case.real.sum())
    return found


class Schedule(NamedTuple):
    """What training does when, in JAX's own numbers: the batches of an epoch's order, the masks of each step."""

    images: np.ndarray
    labels: np.ndarray
    batch: int
    order: Callable[[int], Array]
    masks: Callable[[int], dict[str, Array]]


def schedule(network: jaxcnn.CNN, images: np.ndarray, labels: np.ndarray, batch: int) -> Schedule:
    """The schedule of training with SEED."""
    order = jax.jit(lambda epoch: train.epoch_order(SEED, epoch, len(images)))
    masks = jax.jit(lambda step: dropout_masks(network, train.random_stream(SEED, train.DROPOUT, step), batch))
    return Schedule(images, labels, batch, order, masks)


class Replay:
    """A training run of the twin, by JAX's schedule."""

    def __init__(
        self, params: Params, plan: Schedule, learning_rate: float, momentum: float, dtype: torch.dtype
    ) -> None:  # fmt: skip
        self.plan, self.dtype, self.loss_sum = plan, dtype, 0.0
        self.network = twin(params, dtype)
        self.optimizer = torch.optim.SGD(self.network.parameters(), learning_rate, momentum=momentum)

    def load(self, start: Arrays) -> None:
        """Go on from another state than its own."""
        for name, p in self.network.named_parameters():
            p.data = torch.tensor(start[name], dtype=self.dtype)
            self.optimizer.state[p]["momentum_buffer"] = torch.tensor(start[f"{name}.momentum"], dtype=self.dtype)
        self.loss_sum = float(start["loss"])

    def run(self, start: int, end: int) -> Arrays:
        """Steps `start` to `end`; the state after them, its loss summed over the images of the running epoch."""
        images, labels, batch, order, masks = self.plan
        per_epoch = -(-len(images) // batch)
        for step in range(start, end):
            epoch, position = divmod(step, per_epoch)
            chosen = np.asarray(order(epoch))[position * batch : (position + 1) * batch]
            set_masks(self.network, {name: np.asarray(mask)[: len(chosen)] for name, mask in masks(step).items()})
            loss = batch_loss(self.network, images[chosen], labels[chosen], self.dtype)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss_sum = loss.item() * len(chosen) + (self.loss_sum if position else 0.0)
        return snapshot(self.network, self.optimizer, self.loss_sum)
