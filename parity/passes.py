"""One pass forward and backward through the network in JAX and in PyTorch, everything on the way laid open."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from jaxcnn import files, model, train
from jaxcnn.model import CNN, Params, model_for
from parity.cases import Case, dropout_masks
from parity.torch_model import activations, channels_last, pixels, twin
from parity.weights import carry

Arrays = dict[str, np.ndarray]
LossFunction = Callable[..., Any]


class Pass(NamedTuple):
    """Arrays by name, in order of execution: images channels last, parameters as in a `state_dict`.

    activations: `input`, `conv1`, ..., `fc4`.  outputs: `logits` and `loss`.
    gradients: from `fc4.bias` back to `conv1.weight`, then `input`.
    """

    activations: Arrays
    outputs: Arrays
    gradients: Arrays


def as_state_dict(params: Params) -> Arrays:
    """Flax parameters, or anything of their structure, in PyTorch's names and layout, copied."""
    return carry({name: np.array(leaf) for name, leaf in files.flat_names(params).items()}, "flax", "torch")


def loss_function(network: CNN) -> LossFunction:
    """The mean loss as a function of parameters and scaled images, with its gradients and all activations."""

    def loss(params: Params, x: Array, labels: Array, real: Array, key: Any) -> Any:
        logits, found = network.apply(
            {"params": params}, x, key, capture_intermediates=lambda module, _: bool(module.path)
        )
        mean, _ = train.mean_loss(logits, train.Batch(x, labels, real))
        return mean, (logits, {name: outputs["__call__"][0] for name, outputs in found["intermediates"].items()})

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def jax_pass(network: CNN, function: LossFunction, case: Case, real: np.ndarray) -> Pass:
    """`loss_function`, jitted or not, of a case."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, network.param_dtype), case.params)
    uint8 = case.images.dtype == np.uint8
    scaled = model.scale_pixels if uint8 else jnp.asarray
    x = scaled(jnp.asarray(case.images), network.param_dtype)
    (loss, (logits, found)), (gradients, dx) = function(
        params, x, jnp.asarray(case.labels), jnp.asarray(real), case.key
    )
    backward = dict(reversed(as_state_dict(gradients).items()))
    return Pass(
        {name: np.asarray(array) for name, array in {"input": x, **found}.items()},
        {"logits": np.asarray(logits), "loss": np.asarray(loss)},
        {**backward, "input": np.asarray(dx)},
    )


def torch_pass(case: Case, real: np.ndarray, dtype: torch.dtype) -> Pass:
    """The same in PyTorch."""
    masks = {} if case.key is None else dropout_masks(model_for(case.params), case.key, len(case.images))
    keep = {name: np.asarray(mask) for name, mask in masks.items()}
    network, x = twin(case.params, dtype, keep), pixels(case.images, dtype).requires_grad_()
    found = activations(network, x)
    logits, labels, chosen = found["fc4"], torch.from_numpy(case.labels).long(), torch.from_numpy(real)
    loss = torch.nn.functional.cross_entropy(logits[chosen], labels[chosen])
    loss.backward()
    assert x.grad is not None
    backward = reversed([(name, p.grad.numpy().copy()) for name, p in network.named_parameters() if p.grad is not None])
    return Pass(
        {name: channels_last(tensor) for name, tensor in found.items()},
        {"logits": channels_last(logits), "loss": np.array(loss.item())},
        {**dict(backward), "input": channels_last(x.grad)},
    )


def decisions(found: Arrays) -> Arrays:
    """What the derivative hangs on: the side of each ReLU, and which element of each window is its maximum."""
    maps = found["act2"]
    n, h, w, c = maps.shape
    windows = maps.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4, c)
    return {"pool2": windows.argmax(axis=3), **{name: found[name] > 0 for name in ("conv1", "conv2", "fc3")}}


def otherwise(found: Arrays, truth: Arrays) -> np.ndarray:
    """In how many places each image's decisions differ from the truth's. [n]."""
    ours, theirs = decisions(found), decisions(truth)
    return sum((ours[name] != theirs[name]).reshape(len(ours[name]), -1).sum(axis=1) for name in ours)
