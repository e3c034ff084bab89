"""A pair of networks that should be the same, and one pass through each, laid open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from torch import nn

from jaxcnn.files import NamedArrays
from parity import flax_trace, torch_trace
from parity.table import Table
from parity.torch_trace import channels_first, channels_last


class Case(NamedTuple):
    """Weights, and a batch for them."""

    name: str
    weights: NamedArrays  # a `state_dict` of float32
    images: np.ndarray
    labels: np.ndarray  # uint8
    real: np.ndarray  # which images count
    key: Any = None  # of the dropout masks, in JAX's own form; None if dropout is off


@dataclass(frozen=True, eq=False)
class Pair:
    """A PyTorch module and its Flax port, and how both are run on the same inputs."""

    torch_module: nn.Module  # its own weights are not used
    flax_module: Any
    precision: str  # what JAX computes in
    table: Table
    torch_input: Callable[[np.ndarray, torch.dtype], torch.Tensor]  # of a case's images
    flax_input: Callable[[np.ndarray, str], Array]
    apply: Callable[..., Array]  # (Flax module, variables, input, key) -> output
    torch_loss: Callable[..., torch.Tensor]  # (output, labels, real) -> loss
    flax_loss: Callable[..., Array]
    optimizers: Mapping[str, tuple[dict[str, Any], Any]]  # by kind: options of `torch.optim.SGD`, and optax's optimizer
    output: str = "output"  # its name
    operations: Mapping[str, flax_trace.Operation] = field(default_factory=dict)  # by layer: what replaces its call

    @property
    def dtypes(self) -> list[torch.dtype]:
        """List what PyTorch computes in: the truth, and float32 if its own error is the measure of JAX's."""
        return [torch.float64] + [torch.float32] * (self.precision == "float32")

    def variables(self, weights: NamedArrays) -> Any:
        """Make the Flax variables of a `state_dict`, in the pair's precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.precision), self.table.to_flax(weights))

    @cached_property
    def zeros(self) -> Any:
        """Make Flax variables of zeros, for what depends on no weight: dropout masks."""
        return self.variables({name: np.zeros(t.shape) for name, t in self.torch_module.state_dict().items()})


class Pass(NamedTuple):
    """Arrays by name in order of execution: images channels last, parameters as in a `state_dict`."""

    inputs: NamedArrays  # of every layer
    activations: NamedArrays
    outputs: NamedArrays  # of the network, and the loss
    gradients: NamedArrays  # of every parameter, from the last back to the first, and of the input
    masks: NamedArrays  # what each dropout kept; none if it is off


def flax_pass(pair: Pair, case: Case, compiled: bool = True) -> Pass:
    """Run a case forward and backward in JAX."""
    x, labels, real = pair.flax_input(case.images, pair.precision), jnp.asarray(case.labels), jnp.asarray(case.real)
    with jax.disable_jit(not compiled):
        (loss, (output, trace)), (gradients, dx) = _loss(pair, pair.variables(case.weights), x, labels, real, case.key)
    inputs, outputs = ({name: call[i] for name, call in trace.calls.items()} for i in (0, 1))
    backwards, masks = {**pair.table.to_torch(gradients), "input": dx}, {} if case.key is None else trace.masks
    named = inputs, {"input": x, **outputs}, {pair.output: output, "loss": loss}, backwards, masks
    return Pass(*({name: np.asarray(array) for name, array in arrays.items()} for arrays in named))


@partial(jax.jit, static_argnums=0)
def _loss(pair: Pair, variables: Any, x: Array, labels: Array, real: Array, key: Any) -> Any:
    def of(variables: Any, x: Array) -> Any:
        output, trace = flax_trace.run(partial(pair.apply, pair.flax_module, variables, x, key), pair.operations)
        return pair.flax_loss(output, labels, real), (output, trace)

    return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables, x)


@partial(jax.jit, static_argnums=0)
def dropout_masks(pair: Pair, variables: Any, x: Array, key: Any) -> Any:
    """Compute what each dropout keeps: the rest of the network is compiled away."""
    return flax_trace.run(partial(pair.apply, pair.flax_module, variables, x, key), pair.operations)[1].masks


def torch_pass(pair: Pair, case: Case, dtype: torch.dtype, masks: NamedArrays) -> Pass:
    """Run the same in PyTorch, with the dropout masks of JAX."""
    parameters, x = torch_parameters(case.weights, dtype), pair.torch_input(case.images, dtype).requires_grad_()
    output, calls = torch_trace.run(pair.torch_module, parameters, x, masks)
    loss = pair.torch_loss(output, case.labels, case.real)
    dx, *gradients = torch.autograd.grad(loss, [x, *parameters.values()])
    inputs, outputs = ({name: channels_last(call[i]) for name, call in calls.items()} for i in (0, 1))
    backwards = {name: g.numpy() for name, g in reversed([*zip(parameters, gradients, strict=True)])}
    ends = {pair.output: channels_last(output), "loss": loss.detach().numpy()}
    return Pass(inputs, {"input": channels_last(x), **outputs}, ends, {**backwards, "input": channels_last(dx)}, masks)


def torch_parameters(weights: NamedArrays, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Make parameters that want gradients of a `state_dict`."""
    return {name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in weights.items()}


def decisions(pair: Pair, result: Pass) -> NamedArrays:
    """Say what the derivative hangs on: the side of each ReLU, and which element of each window is its maximum."""
    sides = {}
    for name, x in result.inputs.items():
        module = pair.torch_module.get_submodule(name.partition("#")[0].replace("/", "."))
        if isinstance(module, nn.ReLU):
            sides[name] = x > 0
        if isinstance(module, nn.MaxPool2d):
            window: Any = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            sides[name] = channels_last(nn.functional.max_pool2d_with_indices(channels_first(x), *window)[1])
    return sides


def other_decisions(pair: Pair, result: Pass, truth: Pass) -> np.ndarray:
    """Count the places in which each image's decisions differ from the truth's. [n]."""
    ours, theirs = decisions(pair, result), decisions(pair, truth)
    return sum((ours[name] != theirs[name]).reshape(len(ours[name]), -1).sum(axis=1) for name in ours)
