"""A pair made ready: its table, which call is which, and how both sides are run in each precision and mode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays, flat_names
from parity.calls import Trace, as_numpy, bracket, leaves
from parity.given import Given
from parity.guided import Guided
from parity.matching import match_calls, name_arrays, name_outputs, pair_places
from parity.pair import Case, Names, Pair, named
from parity.proposal import proposal
from parity.table import Table


@dataclass(eq=False)
class Matched:
    """A pair whose calls and arrays are known on both sides, and how it is run."""

    given: Given
    told: Table | None
    loss: Any
    optimizer: Any
    steps: int
    pairs: dict[str, str] = field(init=False)  # calls
    unshared: list[str] = field(init=False, default_factory=list)  # modules of PyTorch whose draws have no mask

    def __post_init__(self) -> None:
        given = self.given
        with jax.enable_x64(True):
            if self.told is None:
                self.table, guided = proposal(given)
                variables = self.table_variables()
            else:
                self.table = self.told
                variables = self.table_variables()
                guided = Guided(given, [], table=self.told)
            theirs, trace = given.reference
            (ours, _), seen = given.flax_run(self.whole(variables), "float64", eager=True)
            self.deterministic(theirs, ours, variables)
            self.traces = trace, seen
            self.layers_matched = {m.torch: m.flax for m in guided.matches}
            self.pairs = match_calls([*self.layers_matched.items()], self.table, trace, seen)
            self.names = self.find_names(trace, seen, theirs, ours)

    def table_variables(self) -> Any:
        """Make Flax's variables of the random state. UserError if the table does not fit."""
        where = f"{self.given.name} and {self.given.flax_name}"
        todo = "print parity.propose(...), write the entries that differ, and give table="
        try:
            made, shapes = flat_names(self.table.to_flax(self.given.random)), self.given.shapes
        except (KeyError, ValueError) as problem:
            raise UserError(f"the table does not fit: {problem}", where, todo) from problem
        if not made:
            raise UserError("the modules cannot be matched: no layer of one is a layer of the other", where, todo)
        for name, value in made.items():
            if name not in shapes or value.shape != tuple(shapes[name].shape):
                has = list(shapes[name].shape) if name in shapes else "no such variable"
                raise UserError(f"the table does not fit: {name} is {list(value.shape)}, Flax has {has}", where, todo)
        rest = [name for name in shapes if name not in made]
        self.rest = (
            {name: value for name, value in flat_names(self.given.port.initial()).items() if name in rest}
            if rest
            else {}
        )
        return jax.tree.map(jnp.asarray, unflatten_dict(made, sep="/"))

    def whole(self, variables: Any) -> Any:
        """Add the variables that have no counterpart in PyTorch, as the module makes them."""
        rest = {name: jnp.asarray(value, _like(value)) for name, value in self.rest.items()}
        return unflatten_dict({**rest, **flat_names(variables)}, sep="/")

    def deterministic(self, theirs: Any, ours: Any, variables: Any) -> None:
        """Raise UserError if a module draws random numbers in evaluation."""
        again = (
            self.given.torch_run(self.given.random, "float64", seed=1)[0],
            self.given.flax_run(self.whole(variables), "float64", key=1, eager=True)[0][0],
        )
        for name, one, two in zip((self.given.name, self.given.flax_name), (theirs, ours), again, strict=True):
            for (_, a), (_, b) in zip(leaves(one), leaves(two), strict=True):
                if not np.allclose(as_numpy(a), as_numpy(b), rtol=1e-9, atol=1e-12, equal_nan=True):
                    raise UserError("two calls in evaluation differ", name,
                                    "it must not be random then: turn its noise off")  # fmt: skip

    def find_names(self, trace: Trace, seen: Trace, theirs: Any, ours: Any) -> Names:
        """Say which array is which in a pass."""
        merges, activations = trace.merges, dict[str, str]()
        for t, f in self.pairs.items():
            one, two = trace.calls[t].outputs, seen.calls[f].outputs
            for a, b in pair_places(one, two, merges, by_value=t not in self.layers_matched).items():
                activations[bracket(t, a, len(one))] = bracket(f, b, len(two))
        given = named([*self.given.inputs], "input"), named([*self.given.flax_inputs], "input")
        outputs = named(theirs, "output"), named(ours, "output")
        inputs = name_arrays(*given, pair_places(*given, merges), merges)
        named_activations = name_arrays(trace.outputs(), seen.outputs(), activations, merges)
        entries = name_outputs(*outputs)
        paired = {name for entry in entries for name in (f"{entry.torch} of PyTorch", f"{entry.flax} of Flax")}
        everything = [f"{n} of {side}" for side, some in zip(("PyTorch", "Flax"), outputs, strict=True) for n in some]
        self.lonely_outputs = [name for name in everything if name not in paired]
        return Names(tuple(inputs), tuple(named_activations), tuple(entries))

    def pair(self, precision: str, train: bool = False) -> Pair:
        """Make the pair in a precision and a mode."""
        given = self.given
        torch_loss, flax_loss = [*map(scalar, ("PyTorch", "JAX"), self.loss)] if self.loss else self.projection
        return Pair(
            torch_module=given.modules["float64"], flax_module=given.port.module, precision=precision, table=self.table,
            torch_input=lambda _, dtype: given.cast_torch(dtype)[0], flax_input=lambda _, one: given.cast_flax(one),
            apply=lambda module, variables, x, key: given.apply(self.whole(variables), x, _key(key), train),
            torch_loss=lambda output, *_: torch_loss(output), flax_loss=lambda output, *_: flax_loss(output),
            optimizers={}, names=self.names, seen_apart=True, train=train,
            torch_kwargs=lambda dtype: given.cast_torch(dtype)[1], dtype="float64" if precision == "float64" else None,
        )  # fmt: skip

    @cached_property
    def projection(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Make the default loss: a fixed random projection of all outputs."""
        rng, entries = np.random.default_rng(2), {e.torch: e for e in self.names.outputs}
        outputs = named(self.given.reference[0], "output")
        floats = {name: tuple(t.shape) for name, t in outputs.items() if t.is_floating_point() and name in entries}
        if not floats:
            raise UserError("no output has floating numbers", self.given.name, "give loss=(PyTorch's, JAX's)")
        weights = {name: rng.normal(0, 1 / np.sqrt(np.prod(shape)), shape) for name, shape in floats.items()}

        def theirs(output: Any) -> Any:
            values = named(output, "output")
            return sum((values[name] * torch.tensor(w, dtype=values[name].dtype)).sum() for name, w in weights.items())

        def ours(output: Any) -> Any:
            values = named(output, "output")
            turned = {entries[name].flax: entries[name].carry(w, "flax") for name, w in weights.items()}
            fits = {n: w if w.shape == values[n].shape else np.ones(values[n].shape) for n, w in turned.items()}
            return sum((values[name] * jnp.asarray(w, values[name].dtype)).sum() for name, w in fits.items())

        return theirs, ours

    def case(self, seed: int = 0, key: Any = None, name: str = "") -> Case:
        """Make a case of random weights, or of the PyTorch module's own."""
        given = self.given
        weights = given.state if name == "own" else given.randomised(seed)
        folded = self.table.to_torch(self.table.to_flax(weights))  # of two biases, the sum and nothing
        return Case(name, {**weights, **folded}, given.inputs, key=key)

    @cached_property
    def held(self) -> NamedArrays:
        """Say which elements of PyTorch's arrays Flax does not have: the second of two biases."""
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), self.table.to_flax(self.given.random))
        return {name: array == 0 for name, array in self.table.to_torch(ones).items() if (array == 0).any()}


def scalar(side: str, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Make a user's loss raise UserError if it fails, or gives anything but a number."""

    def called(output: Any) -> Any:
        try:
            value = loss(output)
        except Exception as problem:
            what = f"it fails: {type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            raise UserError(what, f"the loss of {side}", "it is given the output of the module") from problem
        if getattr(value, "shape", None) != () or (side == "PyTorch" and not value.requires_grad):
            raise UserError("it gives no number that depends on the parameters", f"the loss of {side}",
                            "give one that does: reduced by a mean or a sum, not detached")  # fmt: skip
        return value

    return called


def _key(key: Any) -> Any:
    return jax.random.key(0) if key is None else key


def _like(value: Any) -> Any:
    dtype = np.asarray(value).dtype
    return jnp.result_type(float) if dtype.kind == "f" else dtype
