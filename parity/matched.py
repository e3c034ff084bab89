"""A matched pair: its table, which call is which, and how both sides are run in each precision and mode."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays, flat_names
from parity.calls import Draw, Trace, as_numpy, bracket, leaves
from parity.given import Given, in_words
from parity.guided import Guided, layer_of
from parity.layouts import near
from parity.matching import match_calls, name_arrays, name_outputs, pair_places
from parity.pair import Case, Names, Pair, named
from parity.proposal import proposal
from parity.rules import Piece, ways
from parity.table import Entry, Table

LARGE = 8.0, 20.0  # factors of random scales and biases, and of the first kernel, so that values exceed any limit


class Trained(NamedTuple):
    """What training in float64 has shown."""

    how: Any  # a `steps.Training`
    start: NamedArrays
    keys: list[Any]
    theirs: list[NamedArrays]  # PyTorch's states after the first two steps
    ours: NamedArrays  # Flax's after the first
    draws: tuple[Mapping[str, Draw], Trace, list[Entry]]  # of dropout: PyTorch's, what is seen of Flax, the pairs


@dataclass(eq=False)
class Matched:
    """A pair whose calls and arrays are known on both sides, and how it is run."""

    given: Given
    told: Table | None
    loss: Any
    optimizer: Any
    steps: int
    pairs: dict[str, str] = field(init=False)  # calls
    trained: Any = field(init=False, default=None)  # a Trained, if it was trained in float64
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
            self.outputs, self.drawn_in_evaluation = (theirs, ours), [draw.path for draw in seen.draws.values()]
            self.deterministic(theirs, ours, variables)
            self.traces = trace, seen
            self.doubted = guided.doubted
            self.layers_matched = {m.torch: m.flax for m in guided.matches}
            self.pairs = match_calls([*self.layers_matched.items()], self.table, trace, seen)
            self.names = self.find_names(trace, seen, theirs, ours)

    @cached_property
    def untied(self) -> dict[str, list[str]]:
        """Name PyTorch's arrays that Flax has several of, since it does not share what PyTorch's layers share."""
        ours = dict[str, list[str]]()
        for entry in self.table.expanded:
            (theirs, stacked), (flax, fused) = entry.names("torch"), entry.names("flax")
            if not (stacked or fused or entry.adds):
                ours.setdefault(theirs[0], []).append(flax[0])
        return {name: several for name, several in ours.items() if len({*several}) > 1}

    def table_variables(self) -> Any:
        """Make Flax's variables of the random state. UserError if the table does not fit."""
        where = f"{self.given.name} and {self.given.flax_name}"
        todo = "print parity.propose(...), write the entries that differ, and give table="
        try:
            made, shapes = flat_names(self.table.to_flax(self.given.random)), self.given.shapes
        except (KeyError, ValueError) as problem:
            raise UserError(f"the table does not fit: {problem}", where, todo) from problem
        if not (self.given.state or self.given.shapes):
            raise UserError(
                "neither module has parameters", where, "compare their outputs: there is nothing to carry over"
            )
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

    @cached_property
    def proven(self) -> Table:
        """Give the table; in one from the user, change the entries that values prove wrong."""
        if self.told is None:
            return self.table
        proposed, guided = proposal(self.given)
        in_doubt = lambda e: any(layer_of(f"{e.collection}/{n}") in guided.doubted for n in e.names("flax")[0])  # noqa: E731
        return self.told.with_entries(*(entry for entry in proposed.expanded if not in_doubt(entry)))

    def other_layout(self, name: str, value: Any) -> bool:
        """Tell if a variable in doubt has its array of PyTorch in another layout that its shape allows."""
        if layer_of(name) not in self.doubted:
            return False
        for entry in self.table.expanded:
            (theirs, stacked), (ours, fused) = entry.names("torch"), entry.names("flax")
            if name in [f"{entry.collection}/{one}" for one in ours] and not fused and not entry.adds:
                values = value if stacked else [value]
                return len(values) == len(theirs) and all(map(self._allowed, theirs, values))
        return False

    def _allowed(self, name: str, value: Any) -> bool:
        """Tell if an array is one of PyTorch's in a layout that the kind of its layer may have in Flax."""
        value, piece = np.asarray(value, np.float64), Piece(name, self.given.state[name])
        module = self.given.torch_module.get_submodule(name.rpartition(".")[0])
        for (row,) in ways(module, {"": piece}, {"": value.shape}, self.traces[0].merges):
            pattern = row.layout.pattern(value.shape)
            if pattern and not row.as_pytorch and near(value, Entry("", "", *pattern).carry(piece.array, "flax")):
                return True
        return False

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
        kinds = {name: call.kind for name, call in trace.calls.items()}
        named_activations = name_arrays(trace.outputs(), seen.outputs(), activations, merges, kinds)
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

    @cached_property
    def cases(self) -> dict[str, NamedArrays]:
        """Name other weights for comparing outputs: the module's own, and ones so large that they exceed any limit."""
        random, tied = self.given.random, self.given.tied
        floats = [name for name in self.given.parameters if random[name].dtype.kind == "f"]
        factors = dict.fromkeys([name for name in floats if random[name].ndim == 1], LARGE[0])
        factors |= dict.fromkeys([name for name in floats if random[name].ndim > 1][:1], LARGE[1])
        large = {name: array * factors.get(tied.get(name, name), 1) for name, array in random.items()}
        return {"own weights": self.given.state, "large weights": large}

    def on(self, weights: NamedArrays) -> "Matched":
        """Give the same pair on other weights than the random ones."""
        other = copy.copy(self)
        other.given = copy.copy(self.given)
        other.given.__dict__.pop("reference", None)
        other.given.__dict__["random"] = {n: np.asarray(a, np.float64) if a.dtype.kind == "f" else a
                                          for n, a in weights.items()}  # fmt: skip
        other.traces = other.given.reference[1], self.traces[1]
        return other

    def case(self, seed: int = 0, name: str = "") -> Case:
        """Make a case of random weights, or of the PyTorch module's own."""
        given = self.given
        weights = self.cases[name] if name else given.randomised(seed) if seed else given.random
        folded = self.table.to_torch(self.table.to_flax(weights))  # of two biases, the sum and nothing
        return Case(name, {**weights, **folded}, given.inputs)

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
            what = f"it fails: {in_words(problem)}"
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
