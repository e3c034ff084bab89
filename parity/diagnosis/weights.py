"""Why the user's converted weights are not PyTorch's: each array that differs, and what was done to it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np

from jaxcnn.files import NamedArrays, flat_names
from parity.diagnosis.axes import close
from parity.diagnosis.conversions import ALL, Cause, Variable, causes
from parity.diagnosis.finding import Finding
from parity.matched import Matched
from parity.pair import label
from parity.table import Table

STRANGE = "Flax has no such variable"


def weight_findings(matched: Matched, variables: Any) -> list[Finding]:
    """Say what was done to each of the user's variables that differs from what the table makes from PyTorch's."""
    state, collections = matched.given.state, matched.given.port.collections(variables)
    flat, shapes = flat_names(collections), matched.given.shapes
    given = {name: np.asarray(array, np.float64) for name, array in flat.items() if name in shapes}
    sure = {name: array for name, array in given.items() if not matched.other_layout(name, array)}
    doubted = given.keys() - sure.keys()
    made = {n: a for n, a in flat_names(matched.proven.to_flax(state)).items() if n not in doubted}
    found = [*_explained(matched, matched.proven, sure, made)]
    strange = [name for name in flat if name not in shapes]
    return found + [
        Finding("unknown", name, False, STRANGE, "leave it out, or give it Flax's name") for name in strange
    ]


def table_findings(matched: Matched) -> list[Finding]:
    """Say what is wrong in each entry of the user's table, compared with what `parity.propose` shows to be right."""
    if matched.told is None:
        return []
    told, right = (flat_names(table.to_flax(matched.given.random)) for table in (matched.told, matched.proven))
    given = {name: np.asarray(array, np.float64) for name, array in told.items()}
    return [*_explained(matched, matched.proven, given, right, of_table=True)]


def _explained(
    matched: Matched, table: Table, given: NamedArrays, made: Mapping[str, Any], of_table: bool = False
) -> Iterator[Finding]:
    """Explain each array that differs, combining those of a layer that have one cause."""
    right = {name: np.asarray(array, np.float64) for name, array in made.items()}
    wrong = [name for name in right if name not in given or not close(given[name], right[name])]
    initial = cache(lambda: matched.given.port.initial_of({*wrong}))  # compiled only if nothing else explains one
    layers = dict[Any, list[Finding]]()
    for name in wrong:
        entries = [e for e in table.expanded if name in [f"{e.collection}/{n}" for n in e.names("flax")[0]]]
        whole, path = entries[0], entries[0].names("torch")[0][0].rpartition(".")[0]
        entry = whole._replace(flax=name.partition("/")[2])
        if name in given:
            summed = tuple(entries) if entries[-1].adds and entries[-1].torch in matched.given.state else ()
            module, merges = matched.given.torch_module.get_submodule(path), matched.traces[0].merges
            known = right, initial, summed, matched.given.state, module, merges
            variable = Variable(entry, whole, given[name], right[name], *known)
            some = _certain([*causes(variable)])
        else:
            some = [Cause("weights-missing", "it is missing", f"{whole!r}," if of_table else ALL)]
        for one in some:
            repair = f"{whole!r}," if of_table else one.repair
            layer = entry.torch.rpartition(".")[0] or entry.torch, one.code
            layers.setdefault(layer, []).append(Finding(one.code, label(entry), one.certain, one.text, repair))
    yield from (_layer(layer, some) for (layer, _), some in layers.items())


def _layer(layer: str, some: list[Finding]) -> Finding:
    """Combine the findings of a layer's arrays that have one cause."""
    first = some[0]
    if len(some) == 1:
        return first
    names = [finding.layer.rpartition(" = ")[2].split("/") for finding in some]
    path = [parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, zip(*names, strict=False))]
    first_name, *more = ("/".join(name[len(path) :]) for name in names)
    certain, repairs = all(f.certain for f in some), dict.fromkeys(f.repair for f in some)
    text = f"{first_name}: {first.text}; so too {', '.join(more)}"
    named = f"{layer} = {'/'.join(path)}" if path else layer
    return replace(first, layer=named, certain=certain, text=text, repair="; ".join(repairs))


def _certain(causes: list[Cause]) -> list[Cause]:
    """Keep one cause of each code; several codes that all fit are not certain."""
    kept = {cause.code: cause for cause in reversed(causes)}
    return [cause._replace(certain=cause.certain and len(kept) == 1) for cause in causes if kept[cause.code] is cause]
