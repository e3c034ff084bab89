"""Match the calls of PyTorch and Flax beyond the layers that have arrays: by the table, and by value."""

import re
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from parity.calls import Call, Draw, Trace, as_numpy
from parity.layouts import Merges, candidates, found, near, usual
from parity.table import Entry, Table

Arrays = Mapping[str, np.ndarray]


def match_calls(layers: list[tuple[str, str]], table: Table, theirs: Trace, ours: Trace) -> dict[str, str]:
    """Give the Flax call of each PyTorch call: of `layers` as they are known, then of blocks, then of other modules."""
    matched = {t: f for t, f in layers if t in theirs.calls and f in ours.calls}
    free = {name: call for name, call in ours.calls.items() if name not in set(matched.values())}
    inside = _variables(table)
    holds = {name: _under(call.path, inside["flax"]) for name, call in free.items()}
    for name, call in theirs.calls.items():
        if name in matched:
            continue
        variables = frozenset(v for t in _under(call.path, inside["torch"]) for v in inside["both"][t])
        # A block that holds the same variables, or none. A dropout gives what it is given: its kind counts too.
        options = [f for f in free if (not holds[f] or holds[f] == variables) and _drops(free[f]) == _drops(call)]
        ranked = [(_same(call, free[f], theirs.merges), f) for f in options]
        best = max((r for r in ranked if r[0]), key=lambda r: r[0], default=(0, ""))[1]
        if not best and call.kind == "MultiheadAttention":  # a wrong one is known by what it holds
            best = next((f for f in options if holds[f]), "")
        if best:
            matched[name] = best
            free.pop(best)
    return {name: matched[name] for name in theirs.calls if name in matched}


def _variables(table: Table) -> dict[str, Any]:
    both = defaultdict[str, set[str]](set)
    for entry in table.expanded:
        for name in entry.names("torch")[0]:
            both[name.replace(".", "/")] |= {*entry.names("flax")[0]}
    return {"torch": set(both), "flax": {v for some in both.values() for v in some}, "both": both}


def _under(path: str, names: set[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(f"{path}/"))


def _drops(call: Call) -> bool:
    return "Dropout" in call.kind


def _same(theirs: Call, ours: Call, merges: Merges) -> int:
    """Count PyTorch's outputs that Flax's call has too."""
    one, two = ([as_numpy(leaf) for leaf in call.outputs.values()][:4] for call in (theirs, ours))
    return sum(any(found(a, b, merges) is not None for b in two) for a in one)


def name_arrays(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], pairs: Mapping[str, str], merges: Merges,
    kinds: Mapping[str, str] | None = None,
) -> list[Entry]:  # fmt: skip
    """Match arrays of both sides, with the layout that their values show.

    kinds: the classes of PyTorch's layers.
    """
    entries = []
    for torch, flax in pairs.items():
        t, f = as_numpy(theirs[torch]), as_numpy(ours[flax])
        repeated = t.size != f.size and found(t, f, merges) is not None  # equal, but one has them once
        if t.dtype.kind in "fiub" and not repeated:
            kind = (kinds or {}).get(torch, "")
            pattern, sizes = found(t, f, merges) or usual(t.shape, f.shape, merges, kind)
            entries.append(Entry(torch, flax, pattern, sizes))
    return entries


def name_outputs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Entry]:
    """Pair the outputs of the whole modules: by name, else by place; as they are, or with channels last or first."""
    places = {name: name for name in theirs} if set(theirs) == set(ours) else dict(zip(theirs, ours, strict=False))
    entries = []
    for torch, flax in places.items():
        t, f = as_numpy(theirs[torch]), as_numpy(ours[flax])
        n, *rest = [*"nabcdefg"][: max(1, t.ndim)]
        orders = [[n, *rest], [n, *rest[1:], *rest[:1]], [n, *rest[-1:], *rest[:-1]]]
        patterns = [f"{' '.join([n, *rest])} -> {' '.join(o)}" for o in orders[: 3 if t.ndim in (4, 5) else 1]]
        patterns = patterns if t.ndim else [" -> "]
        fitting = [p for p in patterns if near(f, Entry("", "", p).carry(t, "flax"))]
        likely = [p for p in patterns if Entry("", "", p).carry_shape(t.shape, "flax") == f.shape]
        entries.append(Entry(torch, flax, [*fitting, *likely[-1:], *patterns][0]))
    return entries


def pair_places(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], merges: Merges, by_value: bool = False
) -> dict[str, str]:
    """Pair the arrays of two values: by value, then, if not by value alone, by place."""
    pairs: dict[str, str] = {}
    for exact in (True, False)[: 2 - by_value]:
        for t, array in theirs.items():
            if t in pairs:
                continue
            rest = [f for f in ours if f not in pairs.values()]
            ranked = sorted(rest, key=lambda f: f != t)
            if exact:
                ranked = [f for f in ranked if found(as_numpy(array), as_numpy(ours[f]), merges)]
            elif len(theirs) != len(ours):
                ranked = [f for f in ranked if f == t]
            if ranked:
                pairs[t] = ranked[0]
    return {t: pairs[t] for t in theirs if t in pairs}


def match_draws(
    theirs: Mapping[str, Draw], ours: Mapping[str, Draw], calls: Mapping[str, str], names: list[Entry], merges: Merges,
    table: Table,
) -> list[Entry]:  # fmt: skip
    """Pair the draws of dropout masks: those of one size, after the same call if there are several."""
    layouts = {entry.torch.partition("[")[0]: entry for entry in names}
    flattened = {prod(sizes) for e in table.expanded if (sizes := _flattened(e))}
    free, entries = dict(ours), []
    for torch, draw in theirs.items():
        shape = tuple(draw.mask.shape)
        fits = {f: options for f, other in free.items()
                if (options := list(candidates(shape, tuple(other.mask.shape), merges)))}  # fmt: skip
        if not fits:
            continue
        after = calls.get(draw.after)
        flax = next((f for f in fits if after and free[f].after == after), next(iter(fits)))
        free.pop(flax)
        known = [layouts[name] for name in (torch, draw.after) if name in layouts]
        like = next(((e.axes, dict(e.sizes)) for e in known if (e.axes, dict(e.sizes)) in fits[flax]), None)
        if like is None and shape[-1] in flattened:  # between a flatten and the dense layer that shows its order
            like = next((option for option in fits[flax] if "(" in option[0]), None)
        like = like or fits[flax][0]
        entries.append(Entry(torch, flax, *like))
    return entries


def _flattened(entry: Entry) -> list[int]:
    """Give the sizes of the axes that were flattened before a dense layer, if they have another order in Flax."""
    group = re.search(r"\(([^)]*)\) -> \(", entry.axes)
    return [entry.sizes.get(name, 0) for name in group[1].split()] if group else []
