"""Layouts: how the axes of a PyTorch array may be ordered in a Flax array, as einops patterns."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from einops import rearrange

Shape = tuple[int, ...]
Axis = tuple[tuple[str, int], ...]  # an axis of PyTorch: the named axes that it is made of, and their sizes
Merges = Mapping[int, set[Shape]]  # which axes became one axis of a size when the PyTorch module ran
NEAR = 1e-6  # values that agree this well are the same: a mistake changes them by more


class Layout(NamedTuple):
    """An array of PyTorch as named axes, and the order in which Flax has them; `-h` is turned round."""

    axes: tuple[Axis, ...]
    order: tuple[str, ...]

    def pattern(self, shape: Shape) -> tuple[str, dict[str, int]] | None:
        """Write the einops pattern to an array of this shape, and the sizes that it needs; None if it does not fit.

        Axes of Flax may be several of these together (a dense layer's inputs after flattening), or parts of one.
        """
        size = {name: n for axis in self.axes for name, n in axis}
        order = [name.lstrip("-") for name in self.order]
        parts, groups = {name: [name] for name in size}, [[name] for name in self.order]
        if tuple(size[name] for name in order) != shape:
            queue, groups = [name for name in order if size[name] > 1], []
            parts |= {name: ["1"] for name in size if size[name] == 1}
            for length in shape:
                group = _take(queue, size, parts, length)
                if group is None:
                    return None
                groups.append(group or ["1"])
            if queue:
                return None
        torch = [[part for name, _ in axis for part in parts[name]] for axis in self.axes]
        known = {name.lstrip("-") for group in (*torch, *groups) for name in group[1:]} - {"1"}
        sides = (" ".join(f"({' '.join(g)})" if len(g) > 1 else g[0] for g in side) for side in (torch, groups))
        return " -> ".join(sides), {name: size[name] for name in sorted(known)}


def _take(queue: list[str], size: dict[str, int], parts: dict[str, list[str]], length: int) -> list[str] | None:
    """Take named axes, or a part of one, from the queue, until they make an axis of this length."""
    group, need = [], length
    while need > 1:
        if not queue:
            return None
        name = queue[0]
        if need % size[name] == 0:
            group.append(queue.pop(0))
            need //= size[name]
        elif size[name] % need == 0:
            first, rest = f"{name}1", f"{name}2"
            size |= {first: need, rest: size[name] // need}
            whole = next(n for n, made in parts.items() if name in made)
            place = parts[whole].index(name)
            parts[whole][place : place + 1] = [first, rest]
            queue[0], need = rest, 1
            group.append(first)
        else:
            return None
    return group


def layouts(names: str, shape: Shape, orders: Sequence[str], merges: Merges) -> Iterator[Layout]:
    """List the layouts of an array: in these orders; an axis that PyTorch merged from several, with channels last."""
    plain: tuple[Axis, ...] = tuple(((name, n),) for name, n in zip(names, shape, strict=True))
    turned = [tuple(order.split()) for order in orders]
    yield from (Layout(plain, order) for order in turned)
    for place, n in enumerate(shape):
        for sizes in sorted(merges.get(n, ())):
            fresh = "chw" if len(sizes) == 3 else "cdxyz"[: len(sizes)]
            inner = [name if name not in names else f"{name}0" for name in fresh]
            axes = (*plain[:place], tuple(zip(inner, sizes, strict=True)), *plain[place + 1 :])
            for order in turned:
                last = [part for name in order for part in ([*inner[1:], inner[0]] if name == names[place] else [name])]
                yield Layout(axes, tuple(last))


def any_order(names: str) -> list[str]:
    """List all orders of axes: the given one first, then its reverse."""
    orders = [" ".join(order) for order in itertools.permutations(names)]
    return list(dict.fromkeys([" ".join(names), " ".join(names[::-1]), *orders]))


def near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Tell if arrays have the same values."""
    if ours.shape != theirs.shape or theirs.dtype.kind == "b":
        return np.array_equal(ours, theirs)
    return bool(np.abs(ours - theirs).max(initial=0) <= NEAR * np.abs(theirs).max(initial=0))


def found(theirs: np.ndarray, ours: np.ndarray, merges: Merges) -> tuple[str, dict[str, int]] | None:
    """Find the layout in which Flax's array has the values of PyTorch's, None if it has others."""
    theirs, ours = narrow(np.asarray(theirs), np.asarray(ours))
    if theirs.size != ours.size or not _alike(theirs, ours):
        return None
    for pattern, sizes in candidates(theirs.shape, ours.shape, merges):
        if near(ours, rearrange(theirs, pattern, **sizes)):
            return pattern, sizes
    return None


def narrow(theirs: np.ndarray, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce two arrays, of which one repeats the other along an axis, as positions in a batch do, to one copy each."""
    if theirs.ndim == ours.ndim and theirs.shape != ours.shape:
        once = [1 in sizes and sizes[0] != sizes[1] for sizes in zip(theirs.shape, ours.shape, strict=True)]
        firsts = [array[tuple(slice(0, 1) if one else slice(None) for one in once)] for array in (theirs, ours)]
        if all(np.array_equal(np.broadcast_to(f, a.shape), a) for f, a in zip(firsts, (theirs, ours), strict=True)):
            return firsts[0], firsts[1]
    return theirs, ours


def candidates(theirs: Shape, ours: Shape, merges: Merges) -> Iterator[tuple[str, dict[str, int]]]:
    """List the layouts between two shapes of activations: as they are, channels last, then any order of the axes."""
    if prod(theirs) != prod(ours) or len(theirs) > 6:
        return
    names = "nabcde"[: len(theirs)]
    orders = list(dict.fromkeys([" ".join(names), " ".join([*names[:1], *names[2:], *names[1:2]])]))
    orders += any_order(names) if len(names) < 5 else []
    seen = set()
    for layout in layouts(names, theirs, orders, merges):
        pattern = layout.pattern(ours)
        if pattern and pattern[0] not in seen:
            seen.add(pattern[0])
            yield pattern


def _alike(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Tell if two arrays can have the same values in another order: quickly."""
    one, two = (np.abs(array.astype(np.float64)) for array in (theirs, ours))
    return bool(
        np.isclose(one.sum(), two.sum(), rtol=1e-5, atol=0)
        and np.isclose(one.max(initial=0), two.max(initial=0), rtol=1e-5, atol=0)
    )


def usual(theirs: Shape, ours: Shape, merges: Merges, kind: str = "") -> tuple[str, dict[str, int]]:
    """Give the layout that arrays of these shapes usually have: with channels last, or as they are.

    kind: the class of PyTorch's layer that they are of.
    """
    names = "nabcdefg"[: len(theirs)]
    last = " ".join([*names[:1], *names[2:], *names[1:2]])
    spatial = len(theirs) in (4, 5) or (len(theirs) == 3 and kind.endswith("1d"))
    images = list(layouts(names, theirs, [last], {})) if spatial else []
    others = sorted(candidates(theirs, ours, merges), key=lambda option: "(" in option[0])  # axes whole, if possible
    for pattern in (*(layout.pattern(ours) for layout in images), *others[:1]):
        if pattern:
            return pattern
    last_too = len(theirs) == 3 and theirs[-1] == ours[-1] and not spatial  # then as they are
    other = len(theirs) == len(ours) > 2 and theirs[1] == ours[-1] and not last_too  # other sizes, channels last
    return f"{' '.join(names)} -> {last if other else ' '.join(names)}", {}
