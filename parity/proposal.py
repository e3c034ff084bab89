"""Propose a table: find which entry is which by running both modules on random weights, and prove it by value."""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from torch import nn

from parity.given import Given
from parity.guided import Guided, Placed, layer_of
from parity.layouts import Layout
from parity.rules import Piece, likeness, of_blocks, ways
from parity.table import Entry, Table
from parity.units import brace

SEARCHED = 24  # guided runs, where values leave a choice that only later layers decide
ALIKE = 0.6  # names of which one may be a buffer
STATISTICS = ("running_mean", "running_var")


def propose(
    torch_module: nn.Module,
    flax_module: Any,
    *inputs: Any,
    flax_inputs: tuple[Any, ...] | None = None,
    torch_kwargs: Mapping[str, Any] | None = None,
    flax_kwargs: Mapping[str, Any] | None = None,
) -> Table:
    """Find the table of a PyTorch module and its Flax port, by values, names, kinds, shapes and order.

    inputs: NumPy arrays as the PyTorch module takes them; floating ones of 4 or 5 axes are given to Flax with channels
    last, others as they are, unless `flax_inputs` is given. Uncertain entries are in `doubts`, arrays without a
    counterpart in `left`. UserError if a module cannot be called.
    """
    return proposal(Given(torch_module, flax_module, inputs, flax_inputs, torch_kwargs, flax_kwargs))[0]


def proposal(given: Given) -> tuple[Table, Guided]:
    """Find the table of the given modules, and the run that shows it."""
    with jax.enable_x64(True):
        named = by_name(given, [])
        best = search(given, [], named)
        while more := by_name(given, best.places, everything=True):  # what no call has shown may show more
            told = {ways[0].row.piece.name for ways in named}
            sure = [p for p in best.places if layer_of(p.flax) not in best.doubted or p.row.piece.name in told]
            best, named = search(given, sure, more), [*named, *more]
        if not best.perfect:
            best.doubts += [f"{ways[0].row.piece.name} is {ways[0].flax}: by name and shape only" for ways in named]
            best.doubted |= {layer_of(ways[0].flax) for ways in named}
        return shown_table(given, best), best


def search(given: Given, placed: list[Placed], named: list[list[Placed]]) -> Guided:
    """Run until every layer gives its counterpart's output, with other choices where values leave one."""
    first, *others = variations(given, named)
    best = Guided(given, [*placed, *first])
    for places in itertools.islice(others, SEARCHED):
        if not best.perfect:
            best = max(best, Guided(given, [*placed, *places]), key=lambda run: run.score)
    start, given_places = best, best.places[: len(placed) + len(first)]
    tries: list[tuple[int | None, dict[str, int]]] = [(n, {}) for n in sorted(_heads(given))] if best.fused else []
    tries += [(None, {site: pick}) for site, count in start.choices.items() for pick in range(1, count)]
    for heads, flip in tries[:SEARCHED]:
        if not best.perfect:
            picks = {**best.picks, **flip}
            other = Guided(given, given_places, best.heads if heads is None else heads, picks)
            best = max(best, other, key=lambda run: run.score)
    return best


def variations(given: Given, named: list[list[Placed]]) -> list[list[Placed]]:
    """List ways to place arrays that have only names and shapes: the likely one, then others with few changes."""
    likely = [ways[0] for ways in named]
    changes = [{i: way} for i, ways in enumerate(named) for way in ways[1:]]
    for (i, one), (j, two) in itertools.combinations(enumerate(likely), 2):
        if one.slice is two.slice is None:
            swapped = [_placings(given, b.row.piece.name, a.flax, None) for a, b in ((one, two), (two, one))]
            changes += [{i: swapped[0][0], j: swapped[1][0]}] if all(swapped) else []
    both = [{**a, **b} for a, b in itertools.combinations(changes, 2) if not a.keys() & b.keys()]
    return [[change.get(i, way) for i, way in enumerate(likely)] for change in ({}, *changes, *both[:SEARCHED])]


def _heads(given: Given) -> set[int]:
    """List possible numbers of heads: what modules of either side call so, and axes of Flax's kernels."""
    named = {
        value
        for module in (*given.torch_module.modules(), given.port.module)
        for name, value in vars(module).items()
        if "head" in name and isinstance(value, int)
    }
    return {n for n in (*named, *(leaf.shape[-2] for leaf in given.shapes.values() if len(leaf.shape) == 3)) if n > 1}


def by_name(given: Given, placed: list[Placed], everything: bool = False) -> list[list[Placed]]:
    """Pair arrays by name and shape, each with the ways to place it, the usual first.

    Those that blocks of layers have themselves, or `everything` not yet placed; a variable may be many arrays, stacked.
    """
    taken = {name for place in placed for name in Entry(place.row.piece.name, "", "").names("torch")[0]}
    carried = _carried(given)
    theirs = [
        n for n in given.names if n not in taken and given.random[n].dtype.kind == "f" and (everything or n in carried)
    ]
    ours = [n for n in given.shapes if n not in {place.flax for place in placed}]
    if not everything:
        theirs, ours = of_blocks(theirs, given.names, "."), of_blocks(ours, [*given.shapes], "/")
    families = defaultdict[str, list[str]](list)
    for name in theirs:
        for number in re.finditer(r"\d+", name):
            families[f"{name[: number.start()]}#{name[number.end() :]}"].append(name)
    stacks = [names for names in families.values() if len(names) > 1]
    pairs = []
    for names, flax in itertools.product([*([name] for name in theirs), *stacks], ours):
        stacked = len(names) > 1
        if stacked and tuple(given.shapes[flax].shape[:1]) != (len(names),):
            continue
        placings = [_placings(given, name, flax, i if stacked else None) for i, name in enumerate(names)]
        likely = all(name in carried or likeness(name, flax.partition("/")[2]) > ALIKE for name in names)
        if all(placings) and likely:
            order = -len(names), placings[0][0].row.as_pytorch, -likeness(names[0], flax.partition("/")[2])
            pairs.append((order, names, placings))
    found: list[list[Placed]] = []
    done = set[str]()
    for _, names, placings in sorted(pairs, key=lambda pair: pair[0]):
        if not done & {*names, placings[0][0].flax}:
            done |= {*names, placings[0][0].flax}
            found += placings
    return found


def _placings(given: Given, name: str, flax: str, index: int | None) -> list[Placed]:
    """List the ways in which an array fits a variable, or a slice: by its layer's kind; axes whole, if possible."""
    shape = tuple(given.shapes[flax].shape)[0 if index is None else 1 :]
    module = given.torch_module.get_submodule(name.rpartition(".")[0])
    some = itertools.islice(ways(module, {"": Piece(name, given.random[name])}, {"": shape}, {}), 12)
    rows = [(row, row.layout.pattern(shape) or ("", {})) for [row] in some]
    whole = [row for row, (pattern, _) in rows if "(" not in pattern]
    return [Placed(row, flax, index) for row in whole or [row for row, _ in rows]]


def _carried(given: Given) -> set[str]:
    """Name what a table carries: parameters and running statistics; other buffers are the PyTorch module's own."""
    return {*given.parameters, *(name for name in given.names if name.rpartition(".")[2] in STATISTICS)}


class Line(NamedTuple):
    """An array and the variables that it is, before names are folded."""

    torch: str
    flax: tuple[str, ...]
    layout: Layout
    slice: int | None
    adds: bool


def shown_table(given: Given, run: Guided) -> Table:
    """Make the table that a run has shown."""
    parts = defaultdict[Any, list[Placed]](list)  # a fused array, whose parts are layers of Flax
    for place in run.places:
        piece = place.row.piece
        parts[(piece.name, place.slice) if piece.parts > 1 else (place.flax, piece.name, place.slice)].append(place)
    stacks = defaultdict[Any, list[Line]](list)  # what a loop of Flax stacks
    for number, some in enumerate(parts.values()):
        line = _line(sorted(some, key=lambda place: place.row.piece.part))
        stacks[(line.flax, line.layout, line.adds) if line.slice is not None else number].append(line)
    made = [_entry(sorted(stack, key=lambda line: line.slice or 0), run) for stack in stacks.values()]
    entries = [entry for entry in made if entry.axes]
    order = {name: i for i, name in enumerate(given.random)}
    entries.sort(key=lambda entry: (order[entry.names("torch")[0][0]], entry.adds))
    known = {name: entry for entry in entries for name in entry.names("torch")[0]}
    for name, first in given.tied.items():
        if name not in known and first in known and known[first].torch == first:
            entries.append(known[first]._replace(torch=name))
            known[name] = entries[-1]
    filled = {f"{entry.collection}/{name}" for entry in entries for name in entry.names("flax")[0]}
    left = [f"{n} of PyTorch {list(given.random[n].shape)}" for n in _carried(given) if n not in known]
    left += [f"{n} of Flax {list(leaf.shape)}" for n, leaf in given.shapes.items() if n not in filled]
    return Table(tuple(entries), tuple(run.doubts), tuple(left))


def _line(parts: list[Placed]) -> Line:
    """Give the variables of an array, and its layout to them: to all, stacked, if its parts are several."""
    piece, layout = parts[0].row.piece, parts[0].row.layout
    if piece.parts > 1:
        rows, order = layout.axes[0], layout.order
        if piece.heads:
            (name, size), *_ = rows
            rows = ((f"{name}h", piece.heads), ("s", piece.parts), (f"{name}d", size // piece.heads))
            order = tuple(axis for n in order for axis in ((f"{name}h", f"{name}d") if n == name else (n,)))
        else:
            rows = (("s", piece.parts), *rows)
        layout = Layout((rows, *layout.axes[1:]), ("s", *order))
    flax = tuple(part.flax for part in parts)
    return Line(piece.name, flax, layout, parts[0].slice, any(part.row.adds for part in parts))


def _entry(stack: list[Line], run: Guided) -> Entry:
    """Make an entry of an array, or of those that a loop stacks."""
    torch, flax, layout, index, adds = stack[0]
    shape, path = run.shapes[flax[0]], flax[0] if len(flax) == 1 else brace("s", list(flax))
    if index is not None:
        torch = brace("l", [line.torch for line in stack]) if len(stack) > 1 else f"{{l={torch}}}"
        lead = ("s", "l") if len(flax) > 1 else ("l",)
        layout = Layout(((("l", len(stack)),), *layout.axes), (*lead, *(n for n in layout.order if n not in lead)))
    pattern, sizes = layout.pattern((len(flax), *shape) if len(flax) > 1 else shape) or ("", {})
    labels = [label for label in "sl" if f"{{{label}=" in path + torch]  # their braces tell their sizes
    collection, _, name = path.partition("/")
    return Entry(torch, name, pattern, {n: size for n, size in sizes.items() if n not in labels}, collection, adds)
