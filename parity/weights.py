"""PyTorch's `state_dict` and the Flax parameters: a table, one line a layer, read in both directions by the same code.

Axes are letters: `o,i,h,w` to `h,w,i,o` is a transpose, and in `o,chw` to `hwc,o` one axis is three, permuted.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn.files import NamedArrays, flat_names
from jaxcnn.model import Params

Naming = Literal["torch", "flax"]
Shape = tuple[int, ...]
SEPARATOR = {"torch": ".", "flax": "/"}


class Entry(NamedTuple):
    """An array in both namings, as the last part of its name and its axes; extents that a joined axis does not show."""

    torch: tuple[str, str]
    flax: tuple[str, str]
    extents: Mapping[str, int] = {}


BIAS = Entry(("bias", "o"), ("bias", "o"))
CONV = (Entry(("weight", "o,i,h,w"), ("kernel", "h,w,i,o")), BIAS)
DENSE = (Entry(("weight", "o,i"), ("kernel", "i,o")), BIAS)


def dense_after_flatten(h: int, w: int) -> tuple[Entry, ...]:
    """A dense layer whose inputs are a flattened image: (C, H, W) in PyTorch, (H, W, C) in Flax."""
    return (Entry(("weight", "o,chw"), ("kernel", "hwc,o"), {"h": h, "w": w}), BIAS)


LAYERS: dict[str, tuple[Entry, ...]] = {
    "conv1": CONV,
    "conv2": CONV,
    "fc3": dense_after_flatten(16, 16),
    "fc4": DENSE,
}


def carry(arrays: Mapping[str, np.ndarray], source: Naming, target: Naming) -> NamedArrays:
    """Arrays in one naming to those in another, bit for bit, contiguous and in PyTorch's order.

    KeyError or ValueError where `arrays` are not those of the table.
    """
    carried = {}
    for old, new, split, order, shape in _moves({name: a.shape for name, a in arrays.items()}, source, target):
        carried[new] = np.ascontiguousarray(arrays[old].reshape(split).transpose(order)).reshape(shape)
    return carried


def carry_shapes(shapes: Mapping[str, Shape], source: Naming, target: Naming) -> dict[str, Shape]:
    """The shapes that `carry` gives for arrays of these."""
    return {new: shape for _, new, _, _, shape in _moves(shapes, source, target)}


def _moves(
    shapes: Mapping[str, Shape], source: Naming, target: Naming
) -> Iterator[tuple[str, str, Shape, Shape, Shape]]:
    """For each entry of the table: both names, the shape with all axes apart, their new order, the shape at last."""
    for layer, entry in ((layer, entry) for layer, entries in LAYERS.items() for entry in entries):
        (kind, axes), (new_kind, new_axes) = getattr(entry, source), getattr(entry, target)
        old, extents = layer + SEPARATOR[source] + kind, dict(entry.extents)
        for group, extent in zip(axes.split(","), shapes[old], strict=True):
            rest = extent // prod(entry.extents.get(letter, 1) for letter in group)
            extents |= {letter: rest for letter in group if letter not in entry.extents}
        letters = axes.replace(",", "")
        order = tuple(letters.index(letter) for letter in new_axes.replace(",", ""))
        shape = tuple(prod(extents[letter] for letter in group) for group in new_axes.split(","))
        yield old, layer + SEPARATOR[target] + new_kind, tuple(extents[letter] for letter in letters), order, shape


def as_state_dict(params: Params) -> NamedArrays:
    """Flax parameters, or anything of their structure, in PyTorch's names and layout, copied."""
    return carry({name: np.array(leaf) for name, leaf in flat_names(params).items()}, "flax", "torch")


def as_params(state_dict: Mapping[str, Any]) -> Params:
    """The Flax parameters of a `state_dict`, of arrays or of tensors."""
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    return unflatten_dict(carry(arrays, "torch", "flax"), sep="/")
