"""Which entry of a `state_dict` is which Flax variable: a table, one line a layer, read in both directions.

An einops pattern says how the axes go from PyTorch to Flax: `o i h w -> h w i o` is a transpose, and in
`o (c h w) -> (h w c) o` one axis is three, permuted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from einops import EinopsError, rearrange
from flax.traverse_util import unflatten_dict

from jaxcnn.files import NamedArrays, flat_names

Naming = Literal["torch", "flax"]
Shape = tuple[int, ...]


class Entry(NamedTuple):
    """An array in both namings."""

    torch: str  # `conv1.weight`
    flax: str  # `conv1/kernel`
    axes: str  # an einops pattern from PyTorch to Flax
    sizes: Mapping[str, int] = {}  # of axes that the shapes do not tell
    collection: str = "params"

    def carry(self, array: np.ndarray, target: Naming) -> np.ndarray:
        """Carry the array to the other naming, bit for bit and contiguous; ValueError if its shape does not fit."""
        return np.ascontiguousarray(self.rearranged(array, target))

    def carry_shape(self, shape: Shape, target: Naming) -> Shape:
        """Give the shape that `carry` makes of an array of this one; no array is made."""
        return jax.eval_shape(partial(self.rearranged, target=target), jax.ShapeDtypeStruct(shape, bool)).shape

    def rearranged(self, array: Any, target: Naming) -> Any:
        """Move the axes to where the other naming has them."""
        before, after = self.axes.split(" -> ")
        pattern = self.axes if target == "flax" else f"{after} -> {before}"
        try:
            return rearrange(array, pattern, **self.sizes)
        except EinopsError as problem:
            raise ValueError(f"{self.torch} and {self.flax}: {pattern} for {array.shape}") from problem


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

    def carry(self, arrays: Mapping[str, np.ndarray], target: Naming) -> NamedArrays:
        """Carry arrays by name to the other naming. KeyError or ValueError if they are not those of the table."""
        source: Naming = "torch" if target == "flax" else "flax"
        return {getattr(e, target): e.carry(np.asarray(arrays[getattr(e, source)]), target) for e in self.entries}

    def carry_shapes(self, shapes: Mapping[str, Shape], target: Naming) -> dict[str, Shape]:
        """Give the shapes that `carry` makes of arrays of these."""
        source: Naming = "torch" if target == "flax" else "flax"
        return {getattr(e, target): e.carry_shape(shapes[getattr(e, source)], target) for e in self.entries}

    def to_flax(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Make Flax variables of a `state_dict`, of arrays or of tensors."""
        arrays = self.carry(state_dict, "flax")
        return unflatten_dict({f"{e.collection}/{e.flax}": arrays[e.flax] for e in self.entries}, sep="/")

    def to_torch(self, variables: Mapping[str, Any]) -> NamedArrays:
        """Make a `state_dict` of Flax variables, or of anything of their structure."""
        arrays = flat_names(variables)
        return self.carry({e.flax: np.array(arrays[f"{e.collection}/{e.flax}"]) for e in self.entries}, "torch")

    def with_axes(self, flax: str, axes: str) -> "Table":
        """Give one entry, by its Flax name, another pattern."""
        return Table(tuple(e._replace(axes=axes, sizes={}) if e.flax == flax else e for e in self.entries))
