"""PyTorch's `state_dict` and the Flax parameters: a table, one line a layer, read in both directions by the same code.

Axes are letters: `o,i,h,w` to `h,w,i,o` is a transpose, and in `o,chw` to `hwc,o` one axis is three, permuted.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from jaxcnn.files import Arrays

Naming = Literal["torch", "flax"]


class Side(NamedTuple):
    """An entry in one of the namings: the last part of its name, and its axes."""

    name: str
    axes: str


class Entry(NamedTuple):
    """An array in both namings, with the extents that a joined axis does not show."""

    torch: Side
    flax: Side
    extents: Mapping[str, int] = {}


BIAS = Entry(Side("bias", "o"), Side("bias", "o"))
CONV = (Entry(Side("weight", "o,i,h,w"), Side("kernel", "h,w,i,o")), BIAS)
DENSE = (Entry(Side("weight", "o,i"), Side("kernel", "i,o")), BIAS)


def dense_after_flatten(h: int, w: int) -> tuple[Entry, ...]:
    """A dense layer whose inputs are a flattened image: (C, H, W) in PyTorch, (H, W, C) in Flax."""
    return (Entry(Side("weight", "o,chw"), Side("kernel", "hwc,o"), {"h": h, "w": w}), BIAS)


LAYERS: dict[str, tuple[Entry, ...]] = {
    "conv1": CONV,
    "conv2": CONV,
    "fc3": dense_after_flatten(16, 16),
    "fc4": DENSE,
}
SEPARATOR = {"torch": ".", "flax": "/"}


def carry(arrays: Mapping[str, np.ndarray], source: Naming, target: Naming) -> Arrays:
    """Arrays in one naming to those in another, bit for bit, contiguous and in PyTorch's order.

    KeyError or ValueError where `arrays` are not those of the table.
    """
    carried = {}
    for names, entry in _entries():
        array = arrays[names[source]]
        axes, wanted = getattr(entry, source).axes, getattr(entry, target).axes
        extents = _extents(axes, array.shape, entry.extents)
        letters = axes.replace(",", "")
        split = array.reshape([extents[letter] for letter in letters])
        moved = split.transpose([letters.index(letter) for letter in wanted.replace(",", "")])
        carried[names[target]] = np.ascontiguousarray(moved).reshape(_shape(wanted, extents))
    return carried


def carry_shapes(shapes: Mapping[str, tuple[int, ...]], source: Naming, target: Naming) -> dict[str, tuple[int, ...]]:
    """The shapes that `carry` gives for arrays of these."""
    carried = {}
    for names, entry in _entries():
        extents = _extents(getattr(entry, source).axes, shapes[names[source]], entry.extents)
        carried[names[target]] = _shape(getattr(entry, target).axes, extents)
    return carried


def _entries() -> Iterator[tuple[dict[str, str], Entry]]:
    """Each entry of the table with its whole names: `conv1.weight`, `conv1/kernel`."""
    for layer, entries in LAYERS.items():
        for entry in entries:
            yield (
                {naming: layer + between + getattr(entry, naming).name for naming, between in SEPARATOR.items()},
                entry,
            )


def _extents(axes: str, shape: tuple[int, ...], known: Mapping[str, int]) -> dict[str, int]:
    extents = dict(known)
    for group, extent in zip(axes.split(","), shape, strict=True):
        rest = extent // prod(known.get(letter, 1) for letter in group)
        extents |= {letter: rest for letter in group if letter not in known}
    return extents


def _shape(axes: str, extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(prod(extents[letter] for letter in group) for group in axes.split(","))
