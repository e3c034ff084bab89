"""A pair of networks that should be the same, and one pass through each, with all its arrays."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from torch import nn

from jaxcnn.files import NamedArrays
from parity import flax_trace, torch_trace
from parity.calls import Trace, bracketed, leaves
from parity.table import Entry, Table
from parity.torch_trace import channels_first, channels_last

STEP_RATE = 0.5  # of single steps: the new parameters show what the optimizer does in more than their last digits
QUICK = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    """Weights, and a batch for them."""

    name: str
    weights: NamedArrays  # a `state_dict` of float32
    inputs: Any  # images, or whatever the pair makes both sides' inputs from
    labels: Any = None  # uint8
    real: Any = None  # which images count
    key: Any = None  # of the dropout masks, in JAX's own form; None if dropout is off


class Names(NamedTuple):
    """Which array of a pass in PyTorch is which in Flax, and how its axes lie: entries as those of a table."""

    inputs: tuple[Entry, ...]
    activations: tuple[Entry, ...]  # by call; a place in brackets, if a call has several outputs
    outputs: tuple[Entry, ...]
    draws: tuple[Entry, ...] = ()


@dataclass(frozen=True, eq=False)
class Pair:
    """A PyTorch module and its Flax port, and how both are run on the same inputs."""

    torch_module: nn.Module  # its own weights are not used
    flax_module: Any
    precision: str  # what JAX computes in
    table: Table
    torch_input: Callable[[Any, torch.dtype], tuple[Any, ...]]  # of a case's inputs
    flax_input: Callable[[Any, str], tuple[Any, ...]]
    apply: Callable[..., tuple[Any, Any]]  # (Flax module, variables, inputs, key) -> output, variables after that
    torch_loss: Callable[..., torch.Tensor]  # (output, labels, real) -> loss
    flax_loss: Callable[..., Array]
    optimizers: Mapping[str, tuple[Any, Any]]  # by kind: what PyTorch's is made of, and optax's
    output: str = "output"  # its name
    operations: Mapping[str, flax_trace.Operation] = field(default_factory=dict)  # by layer: what replaces its call
    names: Names | None = None  # if modules are not named alike on both sides, and images channels last
    seen_apart: bool = (
        False  # Flax's calls are seen by a run of their own, step by step: loops hide them from a jitted one
    )
    torch_kwargs: Callable[[torch.dtype], dict[str, Any]] = lambda dtype: {}
    train: bool = False  # PyTorch is in training mode, whether there are dropout masks or not
    dtype: str | None = None  # used by Flax's modules that were given another type to compute in
    statistics: tuple[str, ...] = ()  # buffers that training changes: PyTorch is then given the real images only
    keyed: Callable[[Any, Any], Any] = lambda key, real: key  # (key, real) -> Flax's key, told which images are real
    reported: Callable[..., float] = lambda *given: 0.0  # (output, labels, real) -> the loss that training sums up
    # (parameters by name, options of a kind) -> optimizer
    torch_optimizer: Callable[..., Any] = lambda params, lr=STEP_RATE, **o: torch.optim.SGD(params.values(), lr, **o)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """List what PyTorch computes in: the truth, and float32 if its own error is the measure of JAX's."""
        return [torch.float64] + [torch.float32] * (self.precision == "float32")

    @cached_property
    def trained(self) -> list[str]:
        """List the parameters that have gradients, each once though it may be tied to others."""
        return [name for name, p in self.torch_module.named_parameters() if p.requires_grad]

    def variables(self, weights: NamedArrays) -> Any:
        """Make the Flax variables of a `state_dict`, in the pair's precision."""
        cast = lambda leaf: jnp.asarray(leaf, self.precision if leaf.dtype.kind == "f" else None)  # noqa: E731
        return jax.tree.map(cast, self.table.to_flax(weights))

    @cached_property
    def zeros(self) -> Any:
        """Make Flax variables of zeros, for what depends on no weight: dropout masks."""
        return self.variables({name: np.zeros(t.shape) for name, t in self.torch_module.state_dict().items()})

    def run(self, variables: Any, inputs: tuple[Any, ...], key: Any, eager: bool = False) -> Any:
        """Apply the Flax module: (its output, its variables after that), and what was seen."""
        around, apply = (
            flax_trace.in_place(self.operations),
            partial(self.apply, self.flax_module, variables, inputs, key),
        )
        return flax_trace.run(apply, around, eager, self.dtype, drops=self.train or key is not None)


@cache
def _jitted(function: Callable[..., Any], static: tuple[int, ...], quick: bool) -> Callable[..., Any]:
    return jax.jit(function, static_argnums=static, compiler_options=QUICK if quick else None)


def jitted(pair: Pair, function: Callable[..., Any], static: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """Compile a function of a pair: quickly, if it runs a few times only."""
    # Level 0 halves the time of a check: 17 s for a small ViT, not 33.
    return _jitted(function, static, pair.seen_apart)


class Pass(NamedTuple):
    """Arrays by name in order of execution: images channels last, parameters as in a `state_dict`."""

    inputs: NamedArrays  # of every layer
    activations: NamedArrays
    outputs: NamedArrays  # of the network, and the loss
    gradients: NamedArrays  # of every parameter, from the last back to the first, and of the input
    masks: NamedArrays  # what each dropout kept; none if it is off
    statistics: NamedArrays  # after a pass of training


def label(entry: Entry) -> str:
    """Name an array of a pass: by its name on both sides, or by both names."""
    return entry.flax if entry.torch == entry.flax else f"{entry.torch.replace('/', '.')} = {entry.flax}"


def flax_pass(pair: Pair, case: Case, compiled: bool = True) -> Pass:
    """Run a case forward and backward in JAX."""
    x, variables = pair.flax_input(case.inputs, pair.precision), pair.variables(case.weights)
    with jax.disable_jit(not compiled):
        loss, output, after, seen, gradients, dx = jitted(pair, _loss)(
            pair, variables, x, _array(case.labels), _array(case.real), pair.keyed(case.key, _array(case.real))
        )
    if pair.seen_apart and pair.names and not pair.names.activations:
        seen = {}, {}, dropout_masks(pair, x, case.key)
    elif pair.seen_apart:
        seen = _seen(pair.run(variables, x, case.key, eager=True)[1])
    inputs, activations, masks = seen
    backwards = {
        name: g for name, g in pair.table.to_torch({**variables, "params": gradients}).items() if name in pair.trained
    }
    backwards = {name: backwards[name] for name in pair.trained[::-1] if name in backwards}
    outputs = named(output, pair.output)
    given = named(list(x), "input")
    if pair.names:
        activations = {label(e): activations[e.flax] for e in pair.names.activations}
        outputs = {label(e): outputs[e.flax] for e in pair.names.outputs}
        backwards |= {e.flax: dx[e.flax] for e in pair.names.inputs if e.flax in dx}
    else:
        activations, backwards = {**given, **activations}, {**backwards, **dx}
    if training_statistics(pair, case):
        kept = np.asarray(case.real)
        inputs, activations, outputs = (
            {n: a[kept] for n, a in some.items()} for some in (inputs, activations, outputs)
        )
        backwards |= {name: backwards[name][kept] for name in dx}
        after = {name: array for name, array in pair.table.to_torch(after).items() if name in pair.statistics}
    masks, after = {} if case.key is None else masks, after or {}
    found = inputs, activations, {**outputs, "loss": loss}, backwards, masks, after
    return Pass(*({name: np.asarray(array) for name, array in arrays.items()} for arrays in found))


def _loss(pair: Pair, variables: Any, x: Any, labels: Any, real: Any, key: Any) -> Any:
    given = named(list(x), "input")
    floats = {name: leaf for name, leaf in given.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def of(params: Any, floats: Any) -> Any:
        inputs = jax.tree.unflatten(jax.tree.structure(x), [floats.get(name, leaf) for name, leaf in given.items()])
        (output, after), trace = pair.run({**variables, "params": params}, inputs, key)
        after = after if pair.statistics and key is not None else None
        return pair.flax_loss(output, labels, real), (output, after, None if pair.seen_apart else _seen(trace))

    (loss, (output, after, seen)), (gradients, dx) = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(
        variables["params"], floats
    )
    return loss, output, after, seen, gradients, dx


def _seen(trace: Trace) -> Any:
    masks = OrderedDict((name, draw.mask) for name, draw in trace.draws.items())
    return trace.inputs(), trace.outputs(), masks  # in order: JAX sorts the keys of a dict


def _masks(pair: Pair, variables: Any, x: Any, key: Any) -> Any:
    return _seen(pair.run(variables, x, key)[1])[2]


def dropout_masks(pair: Pair, x: Any, key: Any) -> NamedArrays:
    """Compute what each dropout keeps: the rest of the network is compiled away."""
    drawn = pair.names.draws if pair.names else [m for m in pair.torch_module.modules() if isinstance(m, nn.Dropout)]
    if key is None or not drawn:
        return {}
    try:
        return jax.device_get(jitted(pair, _masks)(pair, pair.zeros, x, key))
    except jax.errors.UnexpectedTracerError:  # drawn inside a loop
        return {n: np.asarray(d.mask) for n, d in pair.run(pair.zeros, x, key, eager=True)[1].draws.items()}


def torch_masks(pair: Pair, masks: NamedArrays, case: Case) -> dict[str, torch.Tensor] | None:
    """Carry the dropout masks of JAX to PyTorch's places; None if a case is not one of training."""
    if pair.names:
        carried = {
            e.torch: torch.from_numpy(e.carry(masks[e.flax], "torch").copy())
            for e in pair.names.draws
            if e.flax in masks
        }
    else:
        carried = {name: channels_first(mask) for name, mask in masks.items()}
    return carried if masks or pair.train or training_statistics(pair, case) else None


def training_statistics(pair: Pair, case: Case) -> bool:
    """Tell if images are normalised by the statistics of the real ones."""
    return bool(pair.statistics) and case.key is not None


def torch_batch(pair: Pair, case: Case, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Make PyTorch's inputs, labels, and which are real; others are left out where they would change statistics."""
    x, kept = pair.torch_input(case.inputs, dtype), case.real
    if not training_statistics(pair, case):
        return x, case.labels, kept
    return tuple(tensor[kept] for tensor in x), case.labels[kept], kept[kept]


def torch_forward(pair: Pair, case: Case, dtype: torch.dtype) -> tuple[Any, Trace]:
    """Run a case forward in PyTorch, dropout off."""
    state, x = torch_state(pair, case.weights, dtype), pair.torch_input(case.inputs, dtype)
    return torch_trace.run(pair.torch_module, state, x, None, pair.torch_kwargs(dtype))


def torch_pass(pair: Pair, case: Case, dtype: torch.dtype, masks: NamedArrays) -> Pass:
    """Run the same in PyTorch, with the dropout masks of JAX."""
    state, (x, labels, real) = torch_state(pair, case.weights, dtype), torch_batch(pair, case, dtype)
    floats = {name: t.requires_grad_() for name, t in named(list(x), "input").items() if t.is_floating_point()}
    kept = torch_masks(pair, masks, case)
    output, trace = torch_trace.run(pair.torch_module, state, x, kept, pair.torch_kwargs(dtype))
    loss = pair.torch_loss(output, labels, real)
    wanted = {**floats, **{name: state[name] for name in pair.trained}}
    found = torch.autograd.grad(loss, [*wanted.values()], allow_unused=True, materialize_grads=True)
    gradients = dict(zip(wanted, found, strict=True))
    backwards = {name: gradients[name].numpy() for name in pair.trained[::-1]}
    inputs, activations = trace.inputs(), trace.outputs()
    given, outputs = named(list(x), "input"), named(output, pair.output)
    if pair.names:
        activations, outputs = _carried(pair.names.activations, activations), _carried(pair.names.outputs, outputs)
        dx = _carried(pair.names.inputs, gradients)
        backwards |= {name.partition(" = ")[0]: array for name, array in dx.items()}
    else:
        activations, inputs, outputs = {**_last(given), **as_flax(trace)}, _last(inputs), _last(outputs)
        backwards |= _last({name: gradients[name] for name in floats})
    after = {name: state[name].numpy() for name in pair.statistics if training_statistics(pair, case)}
    return Pass(inputs, activations, {**outputs, "loss": loss.detach().numpy()}, backwards, masks, after)


def _carried(entries: tuple[Entry, ...], arrays: Mapping[str, torch.Tensor]) -> NamedArrays:
    return {label(e): e.carry(arrays[e.torch].detach().numpy(), "flax") for e in entries if e.torch in arrays}


def _last(tensors: Mapping[str, torch.Tensor]) -> NamedArrays:
    return {name: channels_last(tensor) for name, tensor in tensors.items()}


def as_flax(trace: Trace) -> NamedArrays:
    """Give the outputs of PyTorch's calls as Flax has them: channels last, before a flatten too."""
    flattened = {name: call.inputs["0"].shape[1:] for name, call in trace.calls.items() if call.kind == "Flatten"}
    outputs = trace.outputs()
    return {n: _flat_last(t, flattened[n]) if n in flattened else channels_last(t) for n, t in outputs.items()}


def _flat_last(flat: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Give flattened images as Flax has them: flattened with their channels last."""
    return channels_last(flat.reshape(-1, *shape)).reshape(len(flat), -1)


def torch_state(pair: Pair, weights: NamedArrays, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Make parameters, with gradients for those that are trained, and buffers from a `state_dict`."""
    module, state = pair.torch_module, {}
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        tensor = torch.tensor(weights[name]) if name in weights else own.detach().clone()
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name].requires_grad_(name in pair.trained)
    return state


def named(value: Any, name: str) -> dict[str, Any]:
    """Name the arrays in a value of any structure."""
    return bracketed(dict(leaves(value)), name)


def _array(array: np.ndarray | None) -> Any:
    return None if array is None else jnp.asarray(array)
