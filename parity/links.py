"""The links of the chain: activations, outputs, gradients, single steps. Every tensor is compared by its name.

In float64 JAX and PyTorch are held to a bound. In float32 both are measured against PyTorch's float64, which the
float64 half has shown to be JAX's too, and JAX may be off by twice as much as PyTorch is.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
from optax import tree_utils

from jaxcnn.files import NamedArrays
from parity import torch_trace
from parity.bounds import LEFT_OUT, Check, float32_floor, judge
from parity.pair import Case, Pair, Pass, dropout_masks, flax_pass, other_decisions, torch_parameters, torch_pass

SIGMAS = 5.0  # of the number of kept elements
STEP_RATE = 0.5  # of single steps: the new parameters show what the optimizer does in more than their last digits

# (optimizer, variables, optimizer state, case) -> a state with params, opt_state, and loss_sum over the real images
Step = Callable[[Any, Any, Any, Case], Any]


def compare(
    pair: Pair, weights: NamedArrays, link: str, ours: NamedArrays, others: Sequence[NamedArrays], **place: Any
) -> Iterator[Check]:
    """Judge each of JAX's arrays, by name, against PyTorch's in `pair.dtypes`."""
    floor = float32_floor(weights)
    for name in others[0]:
        theirs = [other[name] for other in others]
        yield judge(ours[name], *theirs, floor=floor, precision=pair.precision, link=link, tensor=name, **place)


def one_pass(pair: Pair, case: Case, compiled: bool = True) -> Generator[Check, None, Case]:
    """Compare a case forward and backward; return it without the images whose gradient is another function's."""
    ours, truth, *single = passes = _passes(pair, case, compiled)
    yield from _compared(pair, "activations", case, passes)
    yield from _mask_rates(pair, case, ours)
    yield from _compared(pair, "outputs", case, passes)
    # An image's gradient is another function's if rounding put a ReLU or a maximum on another side.
    kinks = np.any([other_decisions(pair, result, truth) > 0 for result in (ours, *single)], axis=0)
    same = case._replace(real=case.real & ~kinks)
    left_out = float(1 - same.real.sum() / case.real.sum())
    yield Check(pair.precision, "gradients", "left_out", left_out, LEFT_OUT, case.name)
    if same.real.any() and (same.real != case.real).any():
        passes = _passes(pair, same, compiled)
    yield from _compared(pair, "gradients", case, passes)
    return same


def _passes(pair: Pair, case: Case, compiled: bool) -> list[Pass]:
    ours = flax_pass(pair, case, compiled)
    return [ours, *(torch_pass(pair, case, dtype, ours.masks if case.key is not None else {}) for dtype in pair.dtypes)]


def _compared(pair: Pair, link: str, case: Case, passes: list[Pass]) -> Iterator[Check]:
    ours, *others = (getattr(one, link) for one in passes)
    return compare(pair, case.weights, link, ours, others, case=case.name)


def _mask_rates(pair: Pair, case: Case, ours: Pass) -> Iterator[Check]:
    """Check that the masks, which both sides share, keep as many elements as they should."""
    for name, layer in pair.torch_module.named_modules():
        if isinstance(layer, torch.nn.Dropout) and case.key is not None:
            mask = ours.masks[name.replace(".", "/")]
            bound = SIGMAS * math.sqrt(layer.p * (1 - layer.p) / mask.size)
            error = abs(float(mask.mean()) - (1 - layer.p))
            yield Check(pair.precision, "activations", f"{name}.mask", error, bound, case.name)


class TorchTraining:
    """PyTorch's side of training, with JAX's batches and dropout masks."""

    def __init__(self, pair: Pair, weights: NamedArrays, dtype: torch.dtype, learning_rate: float, **sgd: Any) -> None:
        self.pair, self.dtype, self.loss_sum = pair, dtype, 0.0
        self.variables = pair.variables(weights)  # which the masks do not depend on
        self.parameters = torch_parameters(weights, dtype)
        self.optimizer = torch.optim.SGD(self.parameters.values(), learning_rate, **sgd)

    def load(self, start: NamedArrays) -> None:
        """Go on from another state than its own."""
        for name, p in self.parameters.items():
            p.data = torch.tensor(start[name], dtype=self.dtype)
            self.optimizer.state[p]["momentum_buffer"] = torch.tensor(start[f"{name}.momentum"], dtype=self.dtype)
        self.loss_sum = float(start["loss"])

    def step(self, case: Case) -> None:
        """Take one step on a case's batch, with the masks of its key; its weights are not used."""
        masks = dropout_masks(self.pair, self.variables, case) if case.key is not None else {}
        x = self.pair.torch_input(case.images, self.dtype)
        output, _ = torch_trace.run(self.pair.torch_module, self.parameters, x, masks)
        loss = self.pair.torch_loss(output, case.labels, case.real)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item() * case.real.sum()

    def snapshot(self) -> NamedArrays:
        """Copy PyTorch's state of training."""
        named, has_momentum = self.parameters.items(), self.optimizer.param_groups[0]["momentum"]
        buffers = {name: self.optimizer.state[p]["momentum_buffer"].numpy() for name, p in named if has_momentum}
        return snapshot({name: p.detach().numpy() for name, p in named}, buffers, self.loss_sum)


def snapshot(params: NamedArrays, buffers: NamedArrays, loss_sum: Any) -> NamedArrays:
    """Copy a state of training: parameters, momentum buffers if there are any, and the summed loss, by name."""
    state = {**params, **{f"{name}.momentum": array for name, array in buffers.items()}, "loss": loss_sum}
    return {name: np.array(array) for name, array in state.items()}


def flax_snapshot(pair: Pair, state: Any) -> NamedArrays:
    """Copy JAX's state of training."""
    params, buffers = state.params, tree_utils.tree_get(state.opt_state, "trace")
    arrays, traces = (pair.table.to_torch({"params": tree}) if tree else {} for tree in (params, buffers))
    return snapshot(arrays, traces, state.loss_sum)


def steps(pair: Pair, take_step: Step, case: Case, compiled: bool = True) -> Iterator[Check]:
    """Compare one step of each kind of SGD, from momentum buffers that are not zero."""
    rng = np.random.default_rng(0)
    buffers = {name: rng.normal(0, 0.01, array.shape).astype(np.float32) for name, array in case.weights.items()}

    @jax.jit  # all kinds at once: the compiler sees that they share their gradient
    def taken(variables: Any, trace: Any, images: Any, labels: Any, real: Any) -> dict[str, Any]:
        batch, after = case._replace(images=images, labels=labels, real=real), {}
        for kind, (options, optimizer) in pair.optimizers.items():
            opt_state = optimizer.init(variables["params"])
            if options:
                opt_state = tree_utils.tree_set(opt_state, trace=trace["params"])
            after[kind] = take_step(optimizer, variables, opt_state, batch)
        return after

    arrays = (jax.numpy.asarray(array) for array in (case.images, case.labels, case.real))
    with jax.disable_jit(not compiled):
        after = taken(pair.variables(case.weights), pair.variables(buffers), *arrays)
    start = snapshot(case.weights, buffers, 0.0)
    for kind, (options, _) in pair.optimizers.items():
        others = [TorchTraining(pair, case.weights, dtype, STEP_RATE, **options) for dtype in pair.dtypes]
        for other in others:
            other.load(start)
            other.step(case)
        theirs = [other.snapshot() for other in others]
        yield from compare(pair, case.weights, "step", flax_snapshot(pair, after[kind]), theirs, case=kind)
