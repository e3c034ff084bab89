"""Mistakes in an array that was converted by hand, each tried by its value."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from parity.diagnosis.axes import Axes, Lie, all_axes, close, code, conversion, find, same_values, written
from parity.diagnosis.lies import how_it_lies
from parity.diagnosis.shuffles import of_groups, row_order, words
from parity.layouts import Merges
from parity.table import Entry

ALL = "variables = table.to_flax(module.state_dict())"
HALVES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
DRAWN = 16  # values at least: with fewer, having nothing in common with others may be chance


class Cause(NamedTuple):
    """What was done to an array."""

    code: str
    text: str
    repair: str
    certain: bool = True


@dataclass(frozen=True, eq=False)
class Variable:
    """A Flax variable as it is, and as it should be."""

    entry: Entry  # its own name in it, if the entry has many
    whole: Entry
    given: np.ndarray
    made: np.ndarray
    others: Mapping[str, np.ndarray]  # all that should be
    initial: Callable[[], Mapping[str, Any]]  # how Flax makes those that differ
    summed: tuple[Entry, ...]  # of the arrays that it is the sum of, if they are several
    state: Mapping[str, np.ndarray]
    module: Any  # the layer of PyTorch
    merges: Merges

    @property
    def name(self) -> str:
        """Give its name with its collection."""
        return f"{self.entry.collection}/{self.entry.flax}"

    @cached_property
    def axes(self) -> list[Axes]:
        """Cut it into the axes of its pattern."""
        theirs, stacked = self.whole.names("torch")
        shape = (*stacked, *self.state[theirs[0]].shape)
        return [*all_axes(self.whole, self.made, shape, self.module, self.merges)]


def causes(one: Variable) -> Iterator[Cause]:
    """List the causes that give the user's array: special ones, then any order of rows, then what is left."""
    for kind in (_special, _moved, _shuffled, _unknown):
        if some := [*kind(one)]:
            yield from some
            return


def _special(one: Variable) -> Iterator[Cause]:
    """Say if it was never carried, is off by 1, is another entry's, a multiple, or rounded."""
    given, made, repair = one.given, one.made, conversion(one.whole)
    filled = next((n for n in (0, 1) if given.size and (given == n).all()), None)
    if filled is not None:
        yield Cause("weights-missing", f"it is all {'ones' if filled else 'zeros'}, as Flax makes it first", ALL)
    if given.shape != made.shape:
        return
    for less, said in ((1, "1 was subtracted from it"), (-1, "1 was added to it")):
        if close(given, made - less):
            yield Cause("scale-offset", f"{said}: Flax multiplies by it as it is", repair)
    if filled is not None:
        return
    yield from _parts(one)
    for name, other in one.others.items():
        if other is not made and close(given, other):
            yield Cause("weights-shuffled", f"it is {name.partition('/')[2]}'s", repair)
    if (square := (made * made).sum()) and close(given, (factor := (given * made).sum() / square) * made):
        yield Cause("scale", f"all values are {factor:.6g} times PyTorch's", repair)
    for half, dtype in HALVES.items():
        if close(given, made.astype(np.float32).astype(dtype).astype(np.float64)):
            yield Cause("precision", f"it is rounded to {half}", ALL)


def _parts(one: Variable) -> Iterator[Cause]:
    """Say if it is one of the arrays that it should be the sum of."""
    for entry in one.summed:
        if close(one.given, entry.carry(one.state[entry.torch], "flax")):
            text = f"it is {entry.torch} alone, not {' + '.join(e.torch for e in one.summed)}"
            yield Cause("weights-missing", text, ALL)


def _moved(one: Variable) -> Iterator[Cause]:
    """Say if its axes are in another order, reversed or only reshaped; or, in a grouped kernel, the groups."""
    if not same_values(one.given, one.made):
        return
    yield from _groups(one)
    for axes in one.axes:
        if lie := find(one.given, axes):
            taken, shape = written(axes, lie, one.given.shape), one.given.shape
            right = written(axes, Lie(axes.order, axes.turned), one.made.shape)
            kind = code(lie, axes, shape)
            yield Cause(kind, f"PyTorch's axes were carried {taken}; right is {right}", conversion(one.whole))


def _groups(one: Variable) -> Iterator[Cause]:
    groups, axes = getattr(one.module, "groups", 1), one.axes[0]
    if one.given.shape == one.made.shape and groups > 1 and axes.torch:
        axis = next((i for i, group in enumerate(axes.flax) if group == axes.torch[0]), None)
        order = None if axis is None else row_order(one.given, one.made, axis)
        if order is not None and of_groups(order, groups):
            yield Cause("groups", f"the channels of its {groups} groups are {words(order)}", conversion(one.whole))


def _shuffled(one: Variable) -> Iterator[Cause]:
    """Say if rows along an axis, or along two such as heads and features, are PyTorch's in another order."""
    if one.given.shape != one.made.shape or not same_values(one.given, one.made):
        return
    count = one.made.ndim
    for first, last in [(i, i) for i in range(count)] + [(i, i + 1) for i in range(count - 1)]:
        shape = (*one.made.shape[:first], -1, *one.made.shape[last + 1 :])
        if (order := row_order(one.given.reshape(shape), one.made.reshape(shape), first)) is not None:
            along = f" along axes {first} and {last}" if last > first else f" along axis {first}" if count > 1 else ""
            yield Cause("weights-shuffled", f"its rows{along} are {words(order)}", conversion(one.whole))
            return


def _unknown(one: Variable) -> Iterator[Cause]:
    """Say how it differs; an array that has nothing in common with PyTorch's may never have been carried."""
    given, made = one.given, one.made
    if not np.isfinite(given).all():
        yield Cause("unknown", "it holds NaN or infinity", ALL, False)
        return
    if given.shape != made.shape:
        text = f"it has shape {list(given.shape)}, where {list(made.shape)} is right"
        yield Cause("unknown", text, conversion(one.whole), False)
        return
    if close(given, one.initial().get(one.name, np.nan)):
        yield Cause("weights-missing", "it is as Flax draws it first", ALL)
        return
    sizes = [np.sort(array, axis=None) / (np.abs(array).max(initial=0) or 1) for array in (given, made)]
    common = (
        abs(np.corrcoef(given.ravel(), made.ravel())[0, 1])
        if given.size >= DRAWN and np.ptp(made) and np.ptp(given)
        else 1.0
    )
    if common < 4 / np.sqrt(given.size) and not close(*sizes) and np.isfinite(given).all():
        text = (f"it has nothing in common with PyTorch's (mean {given.mean():.2g}, standard deviation "
                f"{given.std():.2g}): it may be as Flax drew it")  # fmt: skip
        yield Cause("weights-missing", text, ALL, False)
    else:
        names = [f"axis-{i} index" for i in range(made.ndim)]
        yield Cause("unknown", how_it_lies(given, made, names), conversion(one.whole), False)
