"""Which entry of a `state_dict` is which Flax variable: a table, one line a layer, read in both directions.

An einops pattern says how the axes go from PyTorch to Flax: `o i h w -> h w i o` is a transpose, in
`o (c h w) -> (h w c) o` one axis is three, permuted, and a minus reverses an axis: `i o h w -> -h -w i o`.

Braces stand for many names, matched one by one on both sides: `layer2.{0..1}.conv.weight` and
`Block_{2..3}/Conv_0/kernel` are two entries. A brace with a letter is an axis of its side, before the others: the three
blocks of rows of `qkv.weight` are `{s=query,key,value}/kernel` by `(s o) i -> s i o`, and what `nn.scan` stacks is
`h.{l=0..11}.fc.weight` to `blocks/fc/kernel` by `l o i -> l i o`.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from einops import EinopsError, rearrange
from flax.traverse_util import unflatten_dict

from jaxcnn.files import NamedArrays, flat_names
from parity.calls import as_numpy

Naming = Literal["torch", "flax"]
NAMINGS: tuple[Naming, Naming] = ("torch", "flax")
Shape = tuple[int, ...]
NUMBER = re.compile(r"\d+")
BRACE = re.compile(r"\{(?:(\w+)=)?([^}]*)\}")


class Entry(NamedTuple):
    """An array in both namings; or several that are one on the other side."""

    torch: str  # `conv1.weight`
    flax: str  # `conv1/kernel`
    axes: str  # an einops pattern from PyTorch to Flax
    sizes: Mapping[str, int] = {}  # of axes that the shapes do not tell
    collection: str = "params"
    adds: bool = False  # to the Flax variable of an earlier entry: PyTorch's LSTM has two biases, Flax's has their sum

    def carry(self, array: np.ndarray, target: Naming) -> np.ndarray:
        """Carry the array to the other naming, bit for bit and contiguous; ValueError if its shape does not fit."""
        return np.asarray(self.rearranged(array, target), order="C")

    def carry_shape(self, shape: Shape, target: Naming) -> Shape:
        """Give the shape that `carry` makes of an array of this one; no array is made."""
        return jax.eval_shape(partial(self.rearranged, target=target), jax.ShapeDtypeStruct(shape, bool)).shape

    def rearranged(self, array: Any, target: Naming) -> Any:
        """Move the axes to where the other naming has them."""
        before, after = self.axes.split(" -> ")
        turned = [axis.startswith("-") for axis in re.findall(r"\([^)]*\)|\S+", after)]
        after = after.replace("-", "")
        braces = [m for side in (self.torch, self.flax) for m in BRACE.finditer(side) if m[1]]
        sizes = {m[1]: len(_alternatives(m[0])) for m in braces} | dict(self.sizes)
        try:
            if target == "flax":
                return _turn(rearrange(array, f"{before} -> {after}", **sizes), turned)
            return rearrange(_turn(array, turned), f"{after} -> {before}", **sizes)
        except EinopsError as problem:
            raise ValueError(f"{self.torch} and {self.flax}: {self.axes} for {array.shape}") from problem

    def expanded(self) -> list["Entry"]:
        """List the entries that the braces of both sides stand for; braces that are axes stay."""
        ours, theirs = (
            [m.group(0) for m in BRACE.finditer(side) if not m.group(1)] for side in (self.torch, self.flax)
        )
        if [len(_alternatives(b)) for b in ours] != [len(_alternatives(b)) for b in theirs]:
            raise ValueError(
                f"{self.torch} and {self.flax}: braces of unequal numbers; name those that are axes: {{s=…}}"
            )
        entries = [self]
        for torch, flax in zip(ours, theirs, strict=True):
            choices = list(zip(_alternatives(torch), _alternatives(flax), strict=True))
            entries = [e._replace(torch=e.torch.replace(torch, t, 1), flax=e.flax.replace(flax, f, 1))
                       for e in entries for t, f in choices]  # fmt: skip
        return entries

    def names(self, naming: Naming) -> tuple[list[str], Shape]:
        """List the arrays of one side, and the sizes of the axes that they are stacked along."""
        side: str = getattr(self, naming)
        lists = [_alternatives(m.group(0)) for m in BRACE.finditer(side)]
        template = BRACE.sub("{}", side)
        return [template.format(*chosen) for chosen in itertools.product(*lists)], tuple(map(len, lists))

    def __repr__(self) -> str:
        rest = [f"{field}={value!r}" for field, value in zip(self._fields[3:], self[3:], strict=True)
                if value != self._field_defaults[field]]  # fmt: skip
        return f"Entry({', '.join([*map(_quoted, self[:3]), *rest])})"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _turn(array: Any, turned: list[bool]) -> Any:
    return array[tuple(slice(None, None, -1 if turn else None) for turn in turned)] if any(turned) else array


def _alternatives(brace: str) -> list[str]:
    """List what a brace stands for: `{q,k,v}`, `{s=q,k,v}` or `{0..3}`."""
    inside = brace.strip("{}").rpartition("=")[2]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        return [str(i) for i in range(int(span[1]), int(span[2]) + 1)]
    return inside.split(",")


CONV, DENSE = "o i h w -> h w i o", "o i -> i o"
DENSE_AFTER_FLATTEN = "o (c h w) -> (h w c) o"  # (C, H, W) inputs in PyTorch, (H, W, C) in Flax


def layer(name: str, axes: str, **sizes: int) -> tuple[Entry, Entry]:
    """Make the entries of a layer with a weight and a bias, both named alike: `block.conv`, `block/conv`."""
    path = name.replace(".", "/")
    return Entry(f"{name}.weight", f"{path}/kernel", axes, sizes), Entry(f"{name}.bias", f"{path}/bias", "o -> o")


@dataclass(frozen=True)
class Table:
    """The entries of a pair of networks, in PyTorch's order."""

    entries: tuple[Entry, ...]
    doubts: tuple[str, ...] = ()  # what is uncertain in a proposed table
    left: tuple[str, ...] = ()  # what has no counterpart, on either side

    @cached_property
    def expanded(self) -> tuple[Entry, ...]:
        """All entries, one by one."""
        return tuple(single for entry in self.entries for single in entry.expanded())

    def carry(self, arrays: Mapping[str, np.ndarray], target: Naming) -> NamedArrays:
        """Carry arrays by name to the other naming. KeyError or ValueError if they are not those of the table."""
        source: Naming = "torch" if target == "flax" else "flax"
        carried: NamedArrays = {}
        seen: set[str] = set()  # sources
        for entry in self.expanded:
            (sources, stack), (targets, unstack) = entry.names(source), entry.names(target)
            given = [np.asarray(arrays[name]) for name in sources]
            if entry.adds and target == "torch":  # x + -0.0 is x, also for -0.0
                given = [np.full_like(a, -0.0) if n in seen and a.dtype != bool else a
                         for n, a in zip(sources, given, strict=True)]  # fmt: skip
            seen |= {*sources}
            whole = np.stack(given).reshape(*stack, *given[0].shape) if stack else given[0]
            array = entry.carry(whole, target)
            parts = array.reshape(-1, *array.shape[len(unstack) :]) if unstack else array[None]
            for name, part in zip(targets, parts, strict=True):
                carried[name] = _combined(entry, name, carried, np.asarray(part, order="C"))
        return carried

    def carry_shapes(self, shapes: Mapping[str, Shape], target: Naming) -> dict[str, Shape]:
        """Give the shapes that `carry` makes of arrays of these; no array is made."""
        source: Naming = "torch" if target == "flax" else "flax"
        carried: dict[str, Shape] = {}
        for entry in self.expanded:
            (sources, stack), (targets, unstack) = entry.names(source), entry.names(target)
            shape = entry.carry_shape((*stack, *shapes[sources[0]]), target)
            carried |= dict.fromkeys(targets, shape[len(unstack) :])
        return carried

    def to_flax(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Make Flax variables of a `state_dict`, of arrays or of tensors."""
        arrays = self.carry({name: as_numpy(array) for name, array in state_dict.items()}, "flax")
        return unflatten_dict({f"{self.collections[name]}/{name}": array for name, array in arrays.items()}, sep="/")

    def to_torch(self, variables: Mapping[str, Any]) -> NamedArrays:
        """Make a `state_dict` of Flax variables, or of anything of their structure."""
        arrays = flat_names(variables)
        return self.carry({name: np.array(arrays[f"{c}/{name}"]) for name, c in self.collections.items()}, "torch")

    @cached_property
    def collections(self) -> dict[str, str]:
        """Say in which collection each Flax variable is."""
        return {name: entry.collection for entry in self.expanded for name in entry.names("flax")[0]}

    @cached_property
    def carried(self) -> dict[str, Entry]:
        """Name the arrays of PyTorch that the table carries, each with its last entry."""
        return {name: entry for entry in self.expanded for name in entry.names("torch")[0]}

    def with_axes(self, flax: str, axes: str) -> "Table":
        """Give one entry, by its Flax name, another pattern."""
        return replace(
            self, entries=tuple(e._replace(axes=axes, sizes={}) if e.flax == flax else e for e in self.entries)
        )

    def with_entries(self, *entries: Entry) -> "Table":
        """Replace the entries that have the same arrays, on either side."""
        new = [single for entry in entries for single in entry.expanded()]
        theirs, ours = ({name for e in new for name in e.names(naming)[0]} for naming in NAMINGS)
        kept = [e for e in self.expanded if not (theirs & {*e.names("torch")[0]} or ours & {*e.names("flax")[0]})]
        return Table((*kept, *new))

    def __str__(self) -> str:
        lines = [f"    {entry!r}," for entry in folded(self.expanded)]
        notes = [f"# in doubt: {doubt}" for doubt in self.doubts] + [f"# left over: {name}" for name in self.left]
        return "\n".join(["Table((", *lines, "))", *notes])


def _combined(entry: Entry, name: str, carried: NamedArrays, array: np.ndarray) -> np.ndarray:
    """Give what an array is with what earlier entries gave it: the sum of two biases, or one that is tied."""
    if name in carried and entry.adds:
        return carried[name] + array
    if name in carried and not np.array_equal(carried[name], array, equal_nan=array.dtype.kind == "f"):
        raise ValueError(f"{entry.torch} and {entry.flax}: tied arrays that differ")
    return array


def folded(entries: tuple[Entry, ...]) -> list[Entry]:
    """Write entries that differ only in consecutive numbers as one, with braces: the last numbers of names first."""
    out, before = list(entries), 0
    while len(out) != before:
        before = len(out)
        for place in range(max((len(NUMBER.findall(e.torch)) for e in entries), default=0)):
            i = 0
            while i < len(out):
                run = _run(out, i, place)
                if len(run) > 1:
                    fold = _braced(out, run, place)
                    out = [fold if k == i else e for k, e in enumerate(out) if k == i or k not in run]
                i += 1
    return out


def _run(entries: list[Entry], first: int, place: int) -> list[int]:
    """Find the entries that continue one: its number at a place counted from the end grows by 1 each time."""
    one, run = entries[first], [first]
    if one.adds:  # it must come after what it adds to
        return run
    for k in itertools.count(1):
        torch = _counted(one.torch, place, k)
        again = [i for i, e in enumerate(entries) if e.torch == torch and e[2:] == one[2:]]
        flax = {_counted(one.flax, back, k) for back in range(len(NUMBER.findall(one.flax)))} - {None}
        again = [i for i in again if entries[i].flax in flax and _back(entries, first, [*run[1:], i]) is not None]
        if torch is None or not again:
            return run
        run.append(again[0])
    return run


def _back(entries: list[Entry], first: int, run: list[int]) -> int | None:
    """Find which number of Flax's name counts along a run."""
    flax = entries[first].flax
    places = range(len(NUMBER.findall(flax)))
    fits = lambda back: all(entries[i].flax == _counted(flax, back, k) for k, i in enumerate(run, 1))  # noqa: E731
    return next((back for back in places if fits(back)), None)


def _braced(entries: list[Entry], run: list[int], place: int) -> Entry:
    """Write a run as one entry."""
    one = entries[run[0]]
    back = _back(entries, run[0], run[1:]) or 0
    return one._replace(torch=_counted(one.torch, place, len(run), True) or "",
                        flax=_counted(one.flax, back, len(run), True) or "")  # fmt: skip


def _counted(name: str, place: int, steps: int, braces: bool = False) -> str | None:
    """Raise a number in a name by `steps`, or write it as a brace; None if there is none. Braces do not count."""
    outside = [m for m in NUMBER.finditer(name) if name[: m.start()].count("{") == name[: m.start()].count("}")]
    found = outside[-1 - place] if place < len(outside) else None
    if found is None or str(number := int(found[0])) != found[0]:
        return None
    text = f"{{{number}..{number + steps - 1}}}" if braces else str(number + steps)
    return name[: found.start()] + text + name[found.end() :]
