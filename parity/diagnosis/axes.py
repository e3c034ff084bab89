"""The layout of a variable that has PyTorch's values with axes in another order, reversed, or only reshaped."""

import itertools
import re
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from parity.bounds import error
from parity.layouts import Merges
from parity.rules import CONVOLUTIONS, TRANSPOSED
from parity.table import BRACE, Entry

NEAR = 1e-6  # of the largest value: what `parity.check` grants to converted weights
GROUP = re.compile(r"\([^)]*\)|\S+")
MOST, SAMPLE = 6, 64  # axes for which all orders are tried; values that are compared first
Groups = tuple[tuple[str, ...], ...]  # the axes of an array, each of them one named axis or several


class Axes(NamedTuple):
    """A variable split into the named axes of its entry's pattern, none of them reversed."""

    array: np.ndarray  # its axes in Flax's order
    torch: Groups  # PyTorch's, without what a loop stacks
    stacked: tuple[str, ...]
    flax: Groups
    turned: frozenset[str]  # what is right
    space: tuple[str, ...]  # of a convolution's kernel

    @property
    def order(self) -> tuple[str, ...]:
        """List the named axes as Flax has them."""
        return tuple(name for group in self.flax for name in group)

    @property
    def size(self) -> dict[str, int]:
        """Say how long each is."""
        return dict(zip(self.order, self.array.shape, strict=True))


class Lie(NamedTuple):
    """An order of a variable's axes, and the reversed ones, that give the user's array."""

    order: tuple[str, ...]
    turned: frozenset[str]


def close(ours: Any, truth: Any) -> bool:
    """Tell if converted weights are right."""
    return error(ours, truth) <= NEAR


def same_values(ours: np.ndarray, truth: np.ndarray) -> bool:
    """Tell if arrays have the same values in any order."""
    return ours.size == truth.size and close(np.sort(ours, axis=None), np.sort(truth, axis=None))


def all_axes(entry: Entry, made: np.ndarray, shape: tuple[int, ...], module: Any, merges: Merges) -> Iterator[Axes]:
    """Split a variable into the axes of its pattern, and, after a flatten, of each image that it may have been.

    shape: of the entry's whole array of PyTorch.
    """
    before, after = (GROUP.findall(side) for side in entry.axes.split(" -> "))
    theirs, ours = (tuple(tuple(a for a in group.strip("-()").split() if a != "1") for group in side)
                    for side in (before, after))  # fmt: skip
    fused = entry.names("flax")[1]
    stacked = tuple(m[1] for m in BRACE.finditer(entry.torch) if m[1])
    size = {**entry.sizes}
    _tell(size, [*zip(theirs, shape, strict=True), *zip(ours, (*fused, *made.shape), strict=True)])
    blocks = {name for group in ours[: len(fused)] for name in group}
    torch = tuple(tuple(a for a in group if a not in blocks) for group in theirs[len(stacked) :])
    torch, ours = tuple(group for group in torch if group), ours[len(fused) :]
    turned = frozenset(text.strip("-") for text in after if text.startswith("-"))
    straight = np.flip(made, tuple(i for i, group in enumerate(ours) if {*group} & turned))
    convolution = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and len(torch) > 2
    space = tuple(name for group in torch[2:] for name in group) if convolution else ()

    def cut(torch: Groups, ours: Groups) -> Axes:
        array = straight.reshape([size[name] for group in ours for name in group])
        return Axes(array, torch, stacked, ours, turned, space)

    yield cut(torch, ours)
    if isinstance(module, nn.Linear) and len(torch) == 2 and len(torch[1]) == 1:
        (whole,) = torch[1]
        for sizes in sorted(merges.get(size[whole], ())):
            names = tuple(f"{n}0" if n in size else n for n in ("chw" if len(sizes) == 3 else "cdxyz")[: len(sizes)])
            size |= dict(zip(names, sizes, strict=True))
            yield cut((torch[0], names), tuple(names if group == (whole,) else group for group in ours))


def _tell(size: dict[str, int], lengths: list[tuple[tuple[str, ...], int]]) -> None:
    """Find the lengths of named axes from those of the arrays' axes."""
    for _ in range(len(lengths)):
        for group, length in lengths:
            unknown = [name for name in group if name not in size]
            if len(unknown) == 1:
                size[unknown[0]] = length // prod(size[name] for name in group if name in size)


def find(given: np.ndarray, axes: Axes) -> Lie | None:
    """Find the order of axes, and reversals of a kernel's, that give the user's values and move the fewest axes."""
    names, right = range(axes.array.ndim), axes.order
    if axes.array.ndim > MOST or given.size != axes.array.size:
        return None
    orders = sorted(itertools.permutations(names), key=lambda order: sum(i != n for i, n in enumerate(order)))
    turns = [frozenset(some) for n in range(len(axes.space) + 1) for some in itertools.combinations(axes.space, n)]
    turns.sort(key=lambda some: len(some ^ axes.turned))
    rng, flat = np.random.default_rng(0), given.ravel()
    some, least = rng.integers(0, given.size, SAMPLE), NEAR * abs(flat).max()
    for turned, order in itertools.product(turns, orders):
        lie = Lie(tuple(right[n] for n in order), turned)
        lies = np.flip(axes.array.transpose(order), tuple(i for i, name in enumerate(lie.order) if name in turned))
        likely = np.allclose(lies[np.unravel_index(some, lies.shape)], flat[some], rtol=NEAR, atol=least)
        if likely and close(lies.ravel(), flat):
            return lie
    return None


def code(lie: Lie, axes: Axes, shape: tuple[int, ...]) -> str:
    """Say which mistake an order of the axes is; shape: of the user's array."""
    size = axes.size
    loose = lambda names: [n for n in names if size[n] > 1 and n not in axes.stacked]  # noqa: E731
    ours, right = loose(lie.order), loose(axes.order)
    if any(size[name] > 1 for name in lie.turned ^ axes.turned):
        return "kernel-flipped"
    if len(axes.torch) == 2 and ours != right:
        lengths = tuple(prod(size[n] for n in group) for group in axes.torch)
        if ours == loose(name for group in axes.torch for name in group):
            fits = shape[len(axes.stacked) :] == lengths or lengths[0] == lengths[1]
            return "kernel-not-transposed" if fits else "kernel-axes"
        rows, columns = ({*group} for group in axes.torch)
        kept = [[[n in rows for n in some], [n for n in some if n in rows], [n for n in some if n in columns]]
                for some in (ours, right)]  # fmt: skip
        if kept[0][0] == kept[1][0] and len(axes.flax) == 2 + len(axes.stacked):
            return "flatten-order" if kept[0][1] == kept[1][1] else "weights-shuffled"
    return "weights-shuffled" if len(axes.torch) == 1 and ours != right else "kernel-axes"


def written(axes: Axes, lie: Lie, shape: tuple[int, ...]) -> str:
    """Write a pattern from PyTorch's axes to an order of them, of an array of a shape."""
    before = [*((name,) for name in axes.stacked), *axes.torch]
    queue, groups, size = [*lie.order], list[tuple[str, ...]](), axes.size
    for length in shape:
        group = list[str]()
        while queue and prod(size[n] for n in group) < length:
            group.append(queue.pop(0))
        if not group and queue and length == size[queue[0]] == 1:
            group.append(queue.pop(0))
        groups.append(tuple(group))
    fits = not queue and all(prod(size[n] for n in g) == length for g, length in zip(groups, shape, strict=True))
    after = groups if fits else [(name,) for name in lie.order]
    text = f"{_side(before, frozenset())} -> {_side(after, lie.turned)}"
    return text if fits else f"{text}, reshaped to {list(shape)}"


def _side(groups: Any, turned: frozenset[str]) -> str:
    signed = ([f"-{name}" if name in turned else name for name in group] for group in groups)
    return " ".join(f"({' '.join(group)})" if len(group) > 1 else "".join(group) or "1" for group in signed)


def conversion(entry: Entry) -> str:
    """Write the code that makes an entry's variable from its array, to paste."""
    theirs, ours = entry.torch.rpartition(".")[2], entry.flax.rpartition("/")[2]
    before, after = (GROUP.findall(side) for side in entry.axes.split(" -> "))
    order = [text.strip("-") for text in after]
    if entry.adds or any(m[1] for side in (entry.torch, entry.flax) for m in BRACE.finditer(side)):
        return "variables = table.to_flax(module.state_dict())"
    turned = tuple(i for i, text in enumerate(after) if text.startswith("-"))
    if before == order:
        text = theirs
    elif sorted(before) == sorted(order) and "1" not in order and "(" not in entry.axes:
        places = ", ".join(str(before.index(name)) for name in order)
        text = f"{theirs}.T" if len(order) == 2 else f"np.transpose({theirs}, ({places}))"
    else:
        sizes = "".join(f", {name}={size}" for name, size in entry.sizes.items())
        text = f'rearrange({theirs}, "{re.sub("-(?!>)", "", entry.axes)}"{sizes})'
    return f"{ours} = np.flip({text}, {turned})" if turned else f"{ours} = {text}"
