"""The links of the chain: activations, outputs, gradients, single steps. Every tensor is compared by its name.

In float64 JAX and PyTorch are held to a bound. In float32 both are measured against PyTorch's float64, which the
float64 half has shown to be JAX's too, and JAX may be off by twice as much as PyTorch is.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.files import NamedArrays
from parity import torch_trace
from parity.bounds import LEFT_OUT, Check, error, float32_floor, judge
from parity.kinks import other_decisions
from parity.pair import (
    Case,
    Pair,
    Pass,
    dropout_masks,
    flax_pass,
    torch_batch,
    torch_masks,
    torch_pass,
    torch_state,
    training_statistics,
)

SIGMAS = 5.0  # of the number of kept elements
SMALL = 1e-7  # a relative change of the outputs, in which the loss is linear

# (optimizer, variables, optimizer state, case) -> a state: variables, opt_state, and loss_sum over the real images
Step = Callable[[Any, Any, Any, Case], Any]


class Condition(NamedTuple):
    """By how many times a loss magnifies a relative error of the outputs: in itself, and in its gradient."""

    loss: float = 1.0
    gradient: float = 1.0


PLAIN = Condition()


def condition_of(loss: Callable[[torch.Tensor], torch.Tensor], outputs: np.ndarray) -> Condition:
    """Measure in float64 by how many times a loss magnifies a relative error of these outputs.

    Softmax does, where logits are large: for images of digits after training, up to 22 with a loss of 0.07, eight
    times. JAX's logits were off by 1.5e-7 there, its loss by 1.0e-6; PyTorch's by 0.9e-7 and 4.1e-7.
    """
    rng, exact = np.random.default_rng(0), torch.tensor(outputs, dtype=torch.float64, requires_grad=True)

    def taken(change: np.ndarray) -> tuple[Any, Any]:
        value = loss(exact + torch.tensor(change * outputs))
        return value.detach(), torch.autograd.grad(value, exact)[0]

    plain = taken(np.zeros(outputs.shape))
    moved = [taken(rng.choice([-SMALL, SMALL], outputs.shape)) for _ in range(8)]
    times = (max(1.0, *(error(other[i], plain[i]) / SMALL for other in moved)) for i in (0, 1))
    return Condition(*(each if math.isfinite(each) else 1.0 for each in times))  # a loss of 0 or NaN excuses nothing


def compare(
    pair: Pair, weights: NamedArrays, link: str, ours: NamedArrays, others: Sequence[NamedArrays],
    condition: Condition = PLAIN, **place: Any,
) -> Iterator[Check]:  # fmt: skip
    """Judge each of JAX's arrays, by name, against PyTorch's in `pair.dtypes`."""
    floor, there_and_back = float32_floor(weights), link in ("gradients", "step")  # through the layers
    times = 2 * condition.gradient if there_and_back else 1.0
    for name in others[0]:
        place |= {"precision": pair.precision, "link": link, "tensor": name}
        place["floor"] = floor * (condition.loss if name == "loss" else times)
        yield judge(ours[name], *(other[name] for other in others), **place)


def both_passes(pair: Pair, case: Case, compiled: bool = True) -> list[Pass]:
    """Run a case on both sides: JAX's pass, then PyTorch's in `pair.dtypes`, with the same masks."""
    ours = flax_pass(pair, case, compiled)
    return [ours, *(torch_pass(pair, case, dtype, ours.masks) for dtype in pair.dtypes)]


def one_pass(pair: Pair, case: Case, compiled: bool = True) -> Generator[Check, None, tuple[Case, Condition]]:
    """Compare a case forward and backward. Return it without the images whose gradient is another function's."""

    def compared(link: str) -> Iterator[Check]:
        ours, *others = (getattr(one, link) for one in passes)
        return compare(pair, case.weights, link, ours, others, condition, case=case.name)

    def magnified(truth: Pass) -> Condition:
        if pair.precision == "float64":  # whose bound is fixed
            return PLAIN
        _, labels, real = torch_batch(pair, same, torch.float64)
        return condition_of(lambda outputs: pair.torch_loss(outputs, labels, real), truth.outputs[pair.output])

    same, passes = case, both_passes(pair, case, compiled)
    condition = magnified(passes[1])
    yield from compared("activations")
    yield from _mask_rates(pair, case, passes[0])
    yield from compared("outputs")
    yield from compared("statistics")
    # An image's gradient is another function's if rounding put a ReLU or a maximum on another side.
    while (others := same.real & _kinks(pair, same, passes)).any():
        same = same._replace(real=same.real & ~others)
        if not same.real.any():
            break
        passes = both_passes(pair, same, compiled)
        condition = magnified(passes[1])
    left_out = float(1 - same.real.sum() / case.real.sum())
    yield Check(pair.precision, "gradients", "left_out", left_out, LEFT_OUT, case.name)
    yield from compared("gradients")
    return same, condition


def _kinks(pair: Pair, case: Case, passes: list[Pass]) -> np.ndarray:
    """Tell for which images a pass has decided unlike the truth. [n]."""
    ours, truth, *single = passes
    found = np.any([other_decisions(pair, result, truth) > 0 for result in (ours, *single)], axis=0)
    kinks = case.real.copy()
    kinks[case.real if training_statistics(pair, case) else slice(None)] = found
    return kinks


def _mask_rates(pair: Pair, case: Case, ours: Pass) -> Iterator[Check]:
    """Check that the masks, which both sides share, keep as many elements as they should."""
    for name, layer in pair.torch_module.named_modules():
        if isinstance(layer, torch.nn.Dropout) and case.key is not None:
            mask, keep = ours.masks[name.replace(".", "/")], 1 - layer.p
            bound = SIGMAS * math.sqrt(layer.p * keep / mask.size)
            yield Check(pair.precision, "activations", f"{name}.mask", abs(float(mask.mean()) - keep), bound, case.name)


def torch_training(
    pair: Pair, start: NamedArrays, batches: Sequence[Case], dtype: torch.dtype, options: Mapping[str, Any]
) -> NamedArrays:
    """Train in PyTorch from a state, and return the state after it. options: of the optimizer."""
    state, loss_sum = torch_state(pair, start, dtype), float(start["loss"])
    params = {name: state[name] for name in pair.trained}
    optimizer = pair.torch_optimizer(params, **options)
    moving = [p for group in optimizer.param_groups if group["momentum"] for p in group["params"]]
    buffers = {name: optimizer.state[p] for name, p in params.items() if any(p is one for one in moving)}
    for name, own in buffers.items():
        own["momentum_buffer"] = torch.tensor(start[f"{name}.momentum"], dtype=dtype)
    loss_sum += sum(reported for _, reported in torch_steps(pair, state, optimizer, batches, dtype))
    arrays = {name: tensor.detach().numpy() for name, tensor in state.items()}
    return snapshot(arrays, {name: own["momentum_buffer"].numpy() for name, own in buffers.items()}, loss_sum)


def torch_steps(
    pair: Pair, state: Mapping[str, torch.Tensor], optimizer: Any, batches: Iterable[Case], dtype: torch.dtype,
    fixed: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[float, float]]:  # fmt: skip
    """Train in PyTorch, one step per batch, with JAX's dropout masks; yield each loss, and the loss that is reported.

    fixed: elements that have no gradient.
    """
    for batch in batches:
        masks = dropout_masks(pair, pair.flax_input(batch.inputs, pair.precision), batch.key)
        (x, labels, real), kept = torch_batch(pair, batch, dtype), torch_masks(pair, masks, batch)
        output, _ = torch_trace.run(pair.torch_module, state, x, kept, pair.torch_kwargs(dtype))
        loss = pair.torch_loss(output, labels, real)
        optimizer.zero_grad()
        loss.backward()
        for name, elements in (fixed or {}).items():
            if (gradient := state[name].grad) is not None:
                gradient[elements] = 0
        optimizer.step()
        yield loss.item(), pair.reported(output, labels, real)


def snapshot(params: NamedArrays, buffers: NamedArrays, loss_sum: Any) -> NamedArrays:
    """Copy a state of training: parameters, momentum buffers if there are any, and the summed loss, by name."""
    state = {**params, **{f"{name}.momentum": array for name, array in buffers.items()}, "loss": loss_sum}
    return {name: np.array(array) for name, array in state.items()}


def flax_snapshot(pair: Pair, state: Any) -> NamedArrays:
    """Copy JAX's state of training."""
    buffers = pair.table.to_torch({**state.variables, "params": tree}) if (tree := momentum(state.opt_state)) else {}
    buffers = {name: array for name, array in buffers.items() if name in pair.trained}
    return snapshot(pair.table.to_torch(state.variables), buffers, state.loss_sum)


def _place(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the path of the parameter whose momentum a leaf of an optimizer's state is; () if it is another."""
    names = [getattr(key, "name", "") for key in path]
    return tuple(key.key for key in path[names.index("trace") + 1 :]) if "trace" in names else ()


def momentum(opt_state: Any) -> Any:
    """Find the momentum of all parameters in an optimizer's state, whatever parts it is made of; {} if it has none."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return unflatten_dict({place: leaf for path, leaf in leaves if (place := _place(path))})


def with_momentum(opt_state: Any, trace: Any) -> Any:
    """Replace the momentum in an optimizer's state, if it has any."""
    known = flatten_dict(trace)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(_place(path), leaf), opt_state)


def steps(pair: Pair, take_step: Step, case: Case, condition: Condition, compiled: bool = True) -> Iterator[Check]:
    """Compare one step of each kind of optimizer, from momentum buffers that are not zero."""
    rng = np.random.default_rng(0)
    buffers = {name: rng.normal(0, 0.01, array.shape).astype(np.float32) if name in pair.trained else array
               for name, array in case.weights.items()}  # fmt: skip

    @jax.jit  # all kinds at once: the compiler sees that they share their gradient
    def taken(variables: Any, trace: Any, batch: dict[str, Any]) -> dict[str, Any]:
        after = {}
        for kind, (_, optimizer) in pair.optimizers.items():
            opt_state = with_momentum(optimizer.init(variables["params"]), trace["params"])
            after[kind] = take_step(optimizer, variables, opt_state, case._replace(**batch))
        return after

    batch = {name: jnp.asarray(getattr(case, name)) for name in ("inputs", "labels", "real")}
    with jax.disable_jit(not compiled):
        after = taken(pair.variables(case.weights), pair.variables(buffers), batch)
    start = snapshot(case.weights, buffers, 0.0)
    for kind, (options, _) in pair.optimizers.items():
        theirs = [torch_training(pair, start, [case], dtype, options) for dtype in pair.dtypes]
        yield from compare(pair, case.weights, "step", flax_snapshot(pair, after[kind]), theirs, condition, case=kind)
