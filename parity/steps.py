"""Train any pair step by step on both sides, with the same dropout masks, and compare the states."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxcnn.files import NamedArrays
from parity.bounds import Check, judge
from parity.calls import Draw
from parity.links import compare, torch_steps
from parity.pair import Case, Pair, dropout_masks, jitted, torch_pass, torch_state
from parity.table import Entry

TRAJECTORY_BOUND = 1e-9  # training amplifies a difference
NONE = 1e-12  # of the largest gradient: only rounding, which Adam would turn into whole steps


@dataclass(frozen=True)
class Training:
    """A pair, how both sides are trained, and what is known of its arrays."""

    pair: Pair
    optimizer: tuple[Callable[..., Any], optax.GradientTransformation]
    inputs: Any
    tied: Mapping[str, str]  # parameters of PyTorch, and which ones they are
    held: NamedArrays  # elements of PyTorch's arrays that Flax does not have
    statistics: tuple[str, ...]  # arrays that are no parameters
    judge_loss: bool  # the user's own

    def states(self, start: NamedArrays, keys: Sequence[Any]) -> list[list[NamedArrays]]:
        """Train a step for each key: the state after each in JAX, then in PyTorch in each of the pair's types."""
        batches = [Case("", start, self.inputs, key=key) for key in keys]
        still = self.rounding_only(batches[0])
        theirs = [list(self.torch_states(start, batches, dtype, still)) for dtype in self.pair.dtypes]
        return [list(self.flax_states(start, batches, still)), *theirs]

    def compare(self, start: NamedArrays, sides: list[list[NamedArrays]]) -> Iterator[Check]:
        """Compare after the first step and after the last."""
        parameters = [name for name in sides[0][0] if name not in self.statistics]
        for link, names in (("statistics", self.statistics), ("step", parameters)):
            yield from compare(self.pair, start, link, *_some([states[0] for states in sides], names))
        if (steps := len(sides[0])) > 1:
            after = _some([states[-1] for states in sides], sides[0][0])
            yield from compare(self.pair, start, "trajectory", *after, step=steps, bound=TRAJECTORY_BOUND)

    def rounding_only(self, case: Case) -> NamedArrays:
        """Say which elements of PyTorch's parameters have a gradient of only rounding: they stay as they are."""
        masks = dropout_masks(self.pair, self.pair.flax_input(self.inputs, self.pair.precision), case.key)
        gradients = torch_pass(self.pair, case, torch.float64, masks).gradients
        largest = max((np.abs(gradients[name]).max(initial=0) for name in self.pair.trained), default=0)
        return {name: np.asarray(np.abs(gradients[name]) < NONE * largest) for name in self.pair.trained}

    def torch_states(
        self, start: NamedArrays, batches: list[Case], dtype: torch.dtype, still: NamedArrays
    ) -> Iterator[NamedArrays]:
        """Train in PyTorch; give the state after each step, and its loss."""
        state = torch_state(self.pair, start, dtype)
        optimizer = self.optimizer[0]([state[name] for name in self.pair.trained])
        fixed = {name: torch.tensor(mask | self.held.get(name, False)) for name, mask in still.items()}
        for loss, _ in torch_steps(self.pair, state, optimizer, batches, dtype, fixed):
            yield self.named({name: t.detach().numpy() for name, t in state.items()}, loss)

    def flax_states(self, start: NamedArrays, batches: list[Case], still: NamedArrays) -> Iterator[NamedArrays]:
        """Train in JAX; give the state after each step, and its loss, in PyTorch's names."""
        pair, optimizer = self.pair, self.optimizer[1]
        variables = pair.variables(start)
        opt_state = optimizer.init(variables["params"])
        arrays = {name: array for name, array in start.items() if array.dtype.kind == "f"}
        trained = {name: np.full(a.shape, self.tied.get(name, name) in pair.trained) for name, a in arrays.items()}
        moving = {
            name: ~still[first] if (first := self.tied.get(name, name)) in still else trained[name] for name in arrays
        }
        masks = [jax.tree.map(jnp.asarray, pair.table.to_flax(some)["params"]) for some in (moving, trained)]
        step = jitted(pair, _step, (0, 1))
        for batch in batches:
            x = pair.flax_input(self.inputs, pair.precision)
            variables, opt_state, loss = step(pair, optimizer, variables, opt_state, x, batch.key, *masks)
            yield self.named(pair.table.to_torch(jax.tree.map(np.asarray, variables)), loss)

    def named(self, arrays: Mapping[str, np.ndarray], loss: Any) -> NamedArrays:
        """Copy the arrays of a state that are compared, without what Flax does not have."""
        state = {
            name: np.array(arrays[name])
            for name in (*self.pair.trained, *self.statistics)
            if name in self.pair.table.carried
        }
        for name, elements in self.held.items():
            state[name][elements] = 0
        return {**state, "loss": np.asarray(loss)} if self.judge_loss else state


def _step(
    pair: Pair, optimizer: Any, variables: Any, opt_state: Any, x: Any, key: Any, moving: Any, trained: Any
) -> tuple[Any, Any, Any]:
    """Take a step; elements that are not `moving` have no gradient, those that are not `trained` stay."""

    def of(params: Any) -> Any:
        (output, after), _ = pair.run({**variables, "params": params}, x, key)
        return pair.flax_loss(output, None, None), after

    (loss, after), gradients = jax.value_and_grad(of, has_aux=True)(variables["params"])
    gradients = jax.tree.map(lambda g, free: jnp.where(free, g, 0), gradients, moving)
    updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
    updates = jax.tree.map(lambda u, free: jnp.where(free, u, 0), updates, trained)
    kept = {c: _like(after[c], known) for c, known in variables.items()}
    return {**kept, "params": optax.apply_updates(variables["params"], updates)}, opt_state, loss


def _like(after: Any, known: Any) -> Any:
    """Give the known variables of a collection their new values."""
    return {name: _like(after[name], inner) for name, inner in known.items()} if isinstance(known, Mapping) else after


def _some(states: list[NamedArrays], names: Any) -> tuple[NamedArrays, list[NamedArrays]]:
    ours, *others = ({name: state[name] for name in names} for state in states)
    return ours, others


def judge_draws(theirs: Mapping[str, Draw], ours: Mapping[str, Draw], draws: Sequence[Entry]) -> Iterator[Check]:
    """Check that each dropout has its counterpart, with the same rate."""
    paired = {e.torch: e.flax for e in draws}
    place: dict[str, Any] = {"precision": "float64", "link": "masks"}
    for name, draw in theirs.items():
        where = draw.path.replace("/", ".") or f"after {draw.after.replace('/', '.') or 'the inputs'}"
        other = paired.get(name)
        if other is None:
            note = f"Flax draws no mask of its size {list(draw.mask.shape)}"
            yield Check(**place, tensor=where, error=float("inf"), bound=0.0, note=note)
        elif ours[other].keep is not None:
            keep = float(ours[other].keep or 0), float(draw.keep or 0)
            yield judge(*keep, bound=1e-6, **place, tensor=f"share kept by {where} = {other}")
    for name, draw in ours.items():
        if name not in paired.values():
            note = f"PyTorch draws no mask of its size {list(draw.mask.shape)}"
            yield Check(**place, tensor=f"{name} of Flax", error=float("inf"), bound=0.0, note=note)
