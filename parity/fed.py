"""Each layer of Flax fed with PyTorch's own input, so that one bad layer does not hide the next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays
from parity.bounds import Check, agrees, error, judge
from parity.calls import Call
from parity.flax_trace import Site, repeat
from parity.layouts import Merges, candidates, found, usual
from parity.matched import Matched
from parity.pair import label, named
from parity.table import Entry

TRIED = 4  # layouts of an input that is not the right one


class Fed(NamedTuple):
    """A layer, and what it does with PyTorch's input."""

    torch: str  # its calls
    flax: str
    entry: Entry  # of its output
    given: np.ndarray  # what Flax gives it, if all layers before are right
    axes: Entry | None  # of its input; None if no layout fits
    output: np.ndarray | None  # Flax's, for PyTorch's input; None if it does not take it
    right: np.ndarray  # PyTorch's, in Flax's layout
    same: bool  # with what Flax gives it, it gives PyTorch's output
    goes_on: bool  # PyTorch's output was given to the layers that follow


@dataclass(frozen=True)
class Feeding:
    """What came out, in order of execution."""

    layers: tuple[Fed, ...]
    results: NamedArrays  # of the whole module, all layers being right
    inputs: dict[str, Call]  # PyTorch's calls

    def checks(self) -> Iterator[Check]:
        """Judge each layer; if it differs, also its input."""
        place: dict[str, Any] = {"precision": "float64", "link": "layers"}
        for fed in self.layers:
            name = label(fed.entry)
            right = self.right_input(fed)
            output = Check(**place, tensor=name, error=float("inf"), bound=0.0, note="it takes no input of this shape")
            if fed.output is not None:
                output = judge(fed.output, fed.right, **place, tensor=name)
            given = right is not None and judge(fed.given, right, **place, tensor=f"input of {name}")
            if given and (not given.passed or not output.passed):
                yield given
            yield output

    def right_input(self, fed: Fed) -> np.ndarray | None:
        """Give a layer's input as PyTorch has it, in Flax's layout."""
        x = next(iter(self.inputs[fed.torch].inputs.values())).numpy()
        if fed.axes is None:
            return None
        return min(fitted(fed.axes.carry(x, "flax"), fed.given), key=lambda one: error(fed.given, one))


def feed(matched: Matched) -> Feeding:
    """Run Flax's module once, each layer fed PyTorch's input, and PyTorch's output passed on."""
    theirs, seen = matched.traces[0], dict[str, Fed]()
    layouts, calls = {e.flax: e for e in matched.names.activations}, {f: t for t, f in matched.pairs.items()}
    paths = {flax.partition("#")[0] for flax in calls}
    blocks = {path for path in paths if any(other.startswith(f"{path}/") for other in paths)}

    def around(site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output, entry = call(*args, **kwargs), layouts.get(site.name)
        if "Dropout" in type(site.module).__name__:  # it may draw
            return output
        if entry is None or site.path in blocks or site.name in seen or not hasattr(output, "shape") or not args:
            return output
        truth = theirs.calls[calls[site.name]]
        if not truth.inputs:
            return output
        x, given = next(iter(truth.inputs.values())).numpy(), np.asarray(args[0])
        right = entry.carry(next(iter(truth.outputs.values())).numpy(), "flax")
        again = lambda value: repeat(site.module, call, (jnp.asarray(value), *args[1:]), kwargs)  # noqa: E731
        axes, own = _right_input(x, given, output, right, again, theirs.merges, truth.kind)
        goes_on = right.shape == output.shape or not matched.given.same_shapes
        seen[site.name] = Fed(
            calls[site.name], site.name, entry, given, axes,
            None if own is None else np.asarray(own), right, agrees(output, right), goes_on,
        )  # fmt: skip
        return jnp.asarray(right) if goes_on else output

    variables = matched.whole(matched.pair("float64").variables(matched.case().weights))
    run = partial(matched.given.flax_run, variables, "float64", around=around, eager=True)
    try:
        (output, _), _ = run()
    except UserError:
        if matched.given.same_shapes:
            raise
        matched.given.same_shapes = True
        seen.clear()
        (output, _), _ = run()
    results = {name: np.asarray(leaf) for name, leaf in named(output, "output").items()}
    return Feeding(tuple(seen.values()), results, theirs.calls)


def _right_input(
    x: np.ndarray, given: np.ndarray, output: Any, right: np.ndarray, again: Callable[..., Any], merges: Merges,
    kind: str,
) -> tuple[Entry | None, Any]:  # fmt: skip
    """Find the layout of a layer's input, which its output shows, and the layer's output for PyTorch's input."""
    same = found(x, given, merges)
    if agrees(output, right):
        return Entry("", "", *same) if same else None, output
    options = [option for option, _ in zip(candidates(x.shape, given.shape, merges), range(TRIED), strict=False)]
    likely, made = usual(x.shape, given.shape, merges, kind), list[tuple[Entry, Any]]()
    layouts = [same] if same else [likely, *(option for option in options if option != likely)]
    for layout, fit in product(layouts, FITS):
        entry = Entry("", "", *layout)
        try:
            fitting = fit(entry.carry(x, "flax"), given.shape)
            if fitting.shape != x.shape and agrees(given, fitting):  # it is padded, as in PyTorch or differently
                return entry, output
            made.append((entry, again(fitting)))
        except Exception:
            continue
        if agrees(made[-1][1], right):
            return made[-1]
    fitting = [one for one in made if getattr(one[1], "shape", None) == right.shape]
    return next(iter([*fitting, *made]), (None, None))


def cropped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Leave out zeros at the borders, where PyTorch pads before a layer and Flax within it."""
    if array.ndim != len(shape) or not all(n >= m for n, m in zip(array.shape, shape, strict=True)):
        return array
    for axis, size in enumerate(shape):
        filled = np.flatnonzero(array.any(axis=tuple(i for i in range(array.ndim) if i != axis)))
        first = int(min(filled[:1].sum(), array.shape[axis] - size))
        rest = array.take(range(first, first + size), axis)
        array = rest if np.count_nonzero(rest) == np.count_nonzero(array) else array
    return array


def padded(array: np.ndarray, shape: tuple[int, ...], mode: Any) -> np.ndarray:
    """Pad at the borders, where Flax pads before a layer and PyTorch within it."""
    if array.ndim != len(shape) or not all(n <= m for n, m in zip(array.shape, shape, strict=True)):
        return array
    sizes = [((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(array.shape, shape, strict=True)]
    return np.pad(array, sizes, mode=mode)


FITS: tuple[Callable[..., np.ndarray], ...] = (
    cropped,
    *(partial(padded, mode=m) for m in ("constant", "reflect", "edge")),
)


def fitted(array: np.ndarray, given: np.ndarray) -> Iterator[np.ndarray]:
    """Give an input as Flax has it: unchanged, or as if one side pads before the layer and the other within it."""
    made = {id(one): one for fit in FITS if (one := fit(array, given.shape)).shape == given.shape}
    yield from made.values() or [array]
