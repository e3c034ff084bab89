"""Flax's own arrays at places where both sides should agree, and how they are compared with PyTorch's."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from parity.bounds import agrees
from parity.diagnosis.tape import Target
from parity.fed import Fed, Feeding, fitted
from parity.layouts import Merges, candidates, usual
from parity.pair import Names, label
from parity.table import Entry


class Seen(NamedTuple):
    """Flax's own array at a target, and its layout."""

    target: Target
    array: np.ndarray
    axes: Entry | None  # if known
    name: str  # of the layer, on both sides
    fed: Fed | None  # None for the output of the whole module
    merges: Merges

    def layouts(self, shape: tuple[int, ...]) -> Iterator[Entry]:
        """List the layouts that an array of PyTorch may have in Flax."""
        if self.axes is not None:
            yield self.axes
            return
        likely = usual(shape, self.array.shape, self.merges)
        yield Entry("", "", *likely)
        for layout in candidates(shape, self.array.shape, self.merges):
            if layout != likely:
                yield Entry("", "", *layout)

    def carried(self, tensor: torch.Tensor) -> Iterator[np.ndarray]:
        """Give an array of PyTorch in each layout that it may have in Flax."""
        for entry in self.layouts(tuple(tensor.shape)):
            try:
                array = entry.carry(tensor.numpy(), "flax")
            except ValueError:
                continue
            yield from (one for one in fitted(array, self.array) if one.shape == self.array.shape)

    def agrees(self, tensor: torch.Tensor) -> bool:
        """Tell if Flax's array is PyTorch's, to rounding."""
        return any(agrees(self.array, array) for array in self.carried(tensor))


def seen(feeding: Feeding, names: Names, truth: Mapping[Target, torch.Tensor], merges: Merges) -> list[Seen]:
    """List Flax's arrays where a layer differs, and its outputs, in the order in which PyTorch makes its own."""
    some = []
    for fed in (fed for fed in feeding.layers if not fed.same):
        name, proven = label(fed.entry), fed.output is not None and agrees(fed.output, fed.right)
        some.append(Seen(Target("input", fed.torch), fed.given, fed.axes if proven else None, name, fed, merges))
        if fed.output is not None:
            axes = fed.entry if fed.output.shape == fed.right.shape else None
            some.append(Seen(Target("output", fed.torch), fed.output, axes, name, fed, merges))
    order = {target: i for i, target in enumerate(truth)}
    some.sort(key=lambda one: order.get(one.target, -1))
    for entry in names.outputs:
        target, array = Target("result", entry.torch), feeding.results[entry.flax]
        fits = array.shape == entry.carry_shape(tuple(truth[target].shape), "flax")
        some.append(Seen(target, array, entry if fits else None, entry.torch, None, merges))
    return some
