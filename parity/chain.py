"""The chain: each link compares every tensor by its name, JAX against PyTorch. Here: one pass, laid open.

In float64 the two are held to a bound. In float32 each is judged against PyTorch's float64, which the float64 half has
found to be JAX's too, and JAX may be off by twice as much as PyTorch is.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from jaxcnn import model, train
from jaxcnn.files import NamedArrays
from jaxcnn.model import CNN, Params
from parity.cases import Case, Trial, cases
from parity.compare import LEFT_OUT, Check
from parity.torch_model import SharedDropout, activations, channels_last, mean_loss, pixels, twin
from parity.training import Drift, steps, trajectory
from parity.weights import as_state_dict

SIGMAS = 5.0  # of the number of kept elements


class Pass(NamedTuple):
    """Arrays by name, in order of execution: images channels last, parameters as in a `state_dict`.

    activations: `input`, `conv1`, ..., `fc4`.  outputs: `logits` and `loss`.
    gradients: from `fc4.bias` back to `conv1.weight`, then `input`.
    """

    activations: NamedArrays
    outputs: NamedArrays
    gradients: NamedArrays


def checks(trial: Trial, drift: Drift) -> Iterator[Check]:
    """All comparisons, computed as they are asked for; `drift` is filled by the trajectory."""
    for case in cases(trial.params, trial.data.train, trial.images):
        if case.name not in trial.cases:
            continue
        ours, truth, *own = passes = _passes(trial, case)
        yield from _compared(trial, "activations", case, passes)
        yield from _mask_rates(trial, case, truth.activations)
        yield from _compared(trial, "outputs", case, passes)
        # An image's gradient is another function's where rounding put a ReLU or a maximum on another side.
        other = np.any([otherwise(one.activations, truth.activations) > 0 for one in (ours, *own)], axis=0)
        same = case._replace(real=case.real & ~other)
        yield trial.check(f"gradients/left_out@{case.name}", 1 - same.real.sum() / case.real.sum(), LEFT_OUT)
        if same.real.any() and (same.real != case.real).any():
            passes = _passes(trial, same)
        yield from _compared(trial, "gradients", case, passes)
        if case.key is not None:
            yield from steps(trial, same)
    yield from trajectory(trial, drift)


def _compared(trial: Trial, link: str, case: Case, passes: list[Pass]) -> Iterator[Check]:
    ours, *others = (getattr(one, link) for one in passes)
    return trial.judge(link, ours, others, f"@{case.name}")


def _passes(trial: Trial, case: Case) -> list[Pass]:
    return [jax_pass(trial, case), *(torch_pass(case, dtype) for dtype in trial.dtypes)]


def _mask_rates(trial: Trial, case: Case, found: NamedArrays) -> Iterator[Check]:
    """That the masks, which both sides share, keep as many elements as they should."""
    for name, layer in twin(case.params, torch.float32).named_children():
        if isinstance(layer, SharedDropout) and case.key is not None:
            mask = layer.mask(case.key, found[name].shape)
            bound = SIGMAS * math.sqrt(layer.p * (1 - layer.p) / mask.size)
            yield trial.check(f"activations/{name}.mask@{case.name}", abs(mask.mean() - (1 - layer.p)), bound)


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
def _loss(network: CNN, params: Params, x: Array, labels: Array, real: Array, key: Any) -> Any:
    """The mean loss of scaled images, with all activations; then the gradients of parameters and images."""
    every = lambda module, _: bool(module.path)  # noqa: E731
    logits, found = network.apply({"params": params}, x, key, capture_intermediates=every)
    mean, _ = train.mean_loss(logits, train.Batch(x, labels, real))
    return mean, (logits, {name: outputs["__call__"][0] for name, outputs in found["intermediates"].items()})


def jax_pass(trial: Trial, case: Case) -> Pass:
    """A case forward and backward in JAX."""
    images = jnp.asarray(case.images)
    x = model.scale_pixels(images, trial.precision) if images.dtype == np.uint8 else images.astype(trial.precision)
    (loss, (logits, found)), (gradients, dx) = _loss(
        trial.network, trial.cast(case.params), x, jnp.asarray(case.labels), jnp.asarray(case.real), case.key
    )
    outputs, backward = {"logits": logits, "loss": loss}, {**as_state_dict(gradients), "input": dx}
    return Pass(*jax.tree.map(np.asarray, ({"input": x, **found}, outputs, backward)))


def torch_pass(case: Case, dtype: torch.dtype) -> Pass:
    """The same in PyTorch, in order of execution."""
    network, x = twin(case.params, dtype, case.key), pixels(case.images, dtype).requires_grad_()
    found = activations(network, x)
    loss = mean_loss(found["fc4"], case.labels, case.real)
    names, parameters = zip(*reversed(list(network.named_parameters())), strict=True)
    *gradients, dx = torch.autograd.grad(loss, [*parameters, x])
    return Pass(
        {name: channels_last(tensor) for name, tensor in found.items()},
        {"logits": channels_last(found["fc4"]), "loss": loss.detach().numpy()},
        {**{name: g.numpy() for name, g in zip(names, gradients, strict=True)}, "input": channels_last(dx)},
    )


def decisions(found: NamedArrays) -> NamedArrays:
    """What the derivative hangs on: the side of each ReLU, and which element of each window is its maximum."""
    maps = found["act2"]
    n, h, w, c = maps.shape
    windows = maps.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4, c)
    return {"pool2": windows.argmax(axis=3), **{name: found[name] > 0 for name in ("conv1", "conv2", "fc3")}}


def otherwise(found: NamedArrays, truth: NamedArrays) -> np.ndarray:
    """In how many places each image's decisions differ from the truth's. [n]."""
    ours, theirs = decisions(found), decisions(truth)
    return sum((ours[name] != theirs[name]).reshape(len(ours[name]), -1).sum(axis=1) for name in ours)
