"""Find the tensors of one of our networks in any file: by their names under any prefix, or by order.

Other contents, such as optimizers, counters and means, are left out and named; an extra layer means another network.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from jaxcnn import files, networks
from jaxcnn import weights as flax_weights
from jaxcnn.data.folder import natural
from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays
from jaxcnn.networks import Network
from jaxcnn.weights import FLOATS, NOT_THESE
from parity.table import Naming, Table
from parity.torch_files import Entries, Entry, Tensor
from parity.twins.tables import TABLES

Key = tuple[str, Naming]  # a network of ours, a naming
Plain = dict[str, str]  # names in a file, by their names without wrappers
# `torch.compile`, DataParallel, FSDP and Flax put these into names.
WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|params)\.|^params\.")
OPTIMIZERS = re.compile(r"(^|\.)opt(im(izers?)?)?(_states?(_dicts?)?)?\.|momentum|exp_avg|square_avg")
GROUPS = re.compile(r"(|.*?\.)param_groups\.")  # only an optimizer has these, beside its state
BESIDE = re.compile(r"(^|\.)(\w+_)?(criterion|loss|losses|metrics?|acc|accuracy)(_\w+)?\.")
STATISTICS = re.compile(r"(^|\.)(?!running)(\w+_)?(mean|std)$")  # of the data, a number or three
PARTS = ("weight", "bias", "kernel")
MOST = 32  # networks that are looked at
CHANGED = {  # what a training can replace a weight by
    r"weight_u$": ("a spectral-normed network", "call torch.nn.utils.remove_spectral_norm(layer)"),
    r"weight_(mask|orig)$": ("a pruned network", "call torch.nn.utils.prune.remove(layer, 'weight')"),
    r"weight_[gv]$": ("a weight-normed network", "call torch.nn.utils.remove_weight_norm(layer)"),
    r"\.parametrizations\.": ("a parametrized network (weight or spectral norm)",
        "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"),
    r"(_packed_params|zero_point)($|\.)": ("a quantised network", "take it as it was before that"),
}  # fmt: skip


class Candidate(NamedTuple):
    """Entries of a file that may be a network: their own names and the file's."""

    key: Key
    prefix: str
    members: dict[str, str]
    by_order: bool = False


class Found(NamedTuple):
    """A network in a file, its arrays in Flax's naming, what was done to find it, and how it is called there."""

    network: Network
    arrays: NamedArrays
    notes: list[str]
    name: str


def in_files(table: Table) -> Table:
    """Give a table the variables' names in files: those that are not parameters start with their collection."""
    return Table(tuple(e if e.collection == "params" else e._replace(flax=f"{e.collection}/{e.flax}")
                       for e in table.expanded))  # fmt: skip


NAMES: dict[Key, list[str]] = {
    (kind, naming): [getattr(entry, naming) for entry in in_files(table).expanded]
    for kind, table in TABLES.items() for naming in ("torch", "flax")
}  # fmt: skip
USES: dict[str, list[Key]] = {}
for _key, _names in NAMES.items():
    for _name in _names:
        USES.setdefault(_name.replace("/", "."), []).append(_key)


def find(entries: Entries, metadata: Mapping[str, str], entry: str | None, where: object) -> Found:
    """Find the one network that is in a file, or in what `entry` names. UserError if there is none, or several."""
    under = (entry or "").replace("/", ".").strip(".")
    plain = _plain(name for name in entries if not under or f"{name.replace('/', '.')}.".startswith(f"{under}."))
    if not plain:
        tops = ", ".join(dict.fromkeys(re.split("[./]", name)[0] for name in list(entries)[:99]))
        raise UserError(f"no entry {under!r}", where, f"there are {tops:.80}")
    searched = _without_optimizers(plain, bool(entry))
    if not searched:
        raise UserError("an optimizer's state, and no network", where, NOT_THESE)
    candidates = [*islice(chain(_by_names(entries, searched), _by_order(entries, searched)), MOST + 1)]
    if len(candidates) > MOST:
        raise UserError(f"more than {MOST} networks in it", where, "choose one by --entry NAME")
    fits: dict[str, Found] = {}
    problems, done = [], set[str]()
    for candidate in candidates or [_nearest(entries, searched)]:
        if candidate.by_order and candidate.prefix in done:  # its names fit in another order
            continue
        try:
            found = _checked(candidate, entries, metadata, where)
            fits.setdefault(files.digest(found.arrays), found)
            done.add(candidate.prefix)
        except UserError as problem:
            problems.append(problem)
    exact = [found for found in fits.values() if found.name == under]
    if len(fits) > 1 and (entry is None or not exact):
        names = ", ".join(found.name or "''" for found in fits.values())
        raise UserError(f"several networks fit: {names:.200}", where, "choose one by --entry NAME")
    if not fits:
        raise _named(plain, where) or problems[0]
    return (exact or [*fits.values()])[0]


def _plain(names: Iterable[str]) -> Plain:
    """Name entries with dots, and without what wraps layers, unless two would have one name."""
    dotted = {name: name.replace("/", ".") for name in names}
    short = {name: WRAPPERS.sub("", text) for name, text in dotted.items()}
    counts = Counter(short.values())
    return {text if counts[text] == 1 else dotted[name]: name for name, text in short.items()}


def _without_optimizers(plain: Plain, is_chosen: bool) -> Plain:
    """Leave out optimizers' state, which has the shapes of a network, too. is_chosen: by its name."""
    found = {match[1] for name in plain if (match := GROUPS.match(name))}
    kept = tuple(start + part for start in found for part in ("state.", "param_groups."))
    others = {name: own for name, own in plain.items() if not name.startswith(kept)}
    return others if is_chosen else {name: own for name, own in others.items() if not OPTIMIZERS.search(name)} or others


def _by_names(entries: Entries, plain: Plain) -> Iterator[Candidate]:
    """List the places with all names of a network, with whatever else is beside them."""
    hits = _hits(plain)
    whole = [at for at, count in hits.items() if count == len(NAMES[at[0]])]
    taken = {prefix + name.replace("/", ".") for key, prefix in whole for name in NAMES[key]}
    yield from (_with_layers(entries, plain, key, prefix, taken) for key, prefix in whole)


def _hits(plain: Plain) -> Counter[tuple[Key, str]]:
    """Count the names of each network under each prefix."""
    hits = Counter[tuple[Key, str]]()
    for name in plain:
        for start in (0, *(m.end() for m in re.finditer(r"\.", name))):
            hits.update((key, name[:start]) for key in USES.get(name[start:], ()))
    return hits


def _with_layers(entries: Entries, plain: Plain, key: Key, prefix: str, taken: Iterable[str] = ()) -> Candidate:
    """Collect the entries of a network, and those that could be layers of it, which would make it another network.

    A `state_dict` is one dict: entries of another dict are not its layers.
    """
    ours = {prefix + name.replace("/", "."): name for name in NAMES[key]}
    homes = {entries[plain[name]].home for name in ours if name in plain}
    members = {name: plain[at] for at, name in ours.items() if at in plain}
    for at, name in plain.items():
        relative = at.removeprefix(prefix)
        is_near = at.startswith(prefix) and (len(homes) != 1 or entries[name].home in homes)
        if is_near and at not in ours and at not in taken and _is_layer(relative, entries[name]):
            members[relative.replace(".", "/") if key[1] == "flax" else relative] = name
    return Candidate(key, prefix, members)


def _is_layer(name: str, entry: Entry) -> bool:
    """Tell a layer's parameters from counters, losses, metrics, and the mean of the data."""
    value = entry.value
    if not isinstance(value, Tensor) or value.dtype.name not in FLOATS or value.shape == ():
        return False
    is_statistic = STATISTICS.search(name) and np.prod(value.shape) in (1, 3)
    return not is_statistic and not BESIDE.search(name)


def _by_order(entries: Entries, plain: Plain) -> Iterable[Candidate]:
    """List the places with as many tensors as a network has, in its order, under any names.

    Only for networks of weights and biases alone, whose shapes tell one from the other.
    """
    groups: dict[str, list[str]] = {}
    for name in (name for name in plain if not any(re.search(pattern, name) for pattern in CHANGED)):
        for start in (0, *(m.end() for m in re.finditer(r"\.", name))):
            if _is_layer(name[start:], entries[plain[name]]):
                groups.setdefault(name[:start], []).append(name)
    told = {key: ours for key, ours in NAMES.items() if {e.collection for e in TABLES[key[0]].entries} == {"params"}}
    lengths = {*map(len, told.values())}  # if several prefixes have the same names, the longest
    inner = {tuple(names): prefix for prefix, names in groups.items() if len(names) in lengths}
    for names, prefix in inner.items():
        for key, ours in told.items():
            for order in (list, _by_layer, _by_number):
                pairs = [*zip(order(ours), order(names), strict=False)]
                if len(ours) == len(names) and all(_are_alike(*pair) for pair in pairs):
                    yield Candidate(key, prefix, {a: plain[b] for a, b in pairs}, by_order=True)


def _by_layer(names: Iterable[str]) -> list[str]:
    """Sort the parts of each layer by name; layers stay in their order."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(re.split(r"[./](?=[^./]*$)", name)[0], []).append(name)
    return [name for layer in layers.values() for name in sorted(layer)]


def _by_number(names: Iterable[str]) -> list[str]:
    """Sort layers by their numbers, whatever order a file has: safetensors has 10 before 3."""
    return sorted(_by_layer(names), key=lambda name: natural(re.split(r"[./](?=[^./]*$)", name)[0]))


def _are_alike(ours: str, theirs: str) -> bool:
    """Tell whether two names may be of the same part of a layer; an unknown name may be of any part."""
    a, b = (re.split("[./]", name)[-1] for name in (ours, theirs))
    return a == b or b not in PARTS


def _nearest(entries: Entries, plain: Plain) -> Candidate:
    """Give the place with the most names of a network, for an error that says what is wrong there."""
    hits = _hits(plain)
    is_flax = any(name.endswith("kernel") for name in plain)
    start: tuple[Key, str] = (("tutorial", "flax" if is_flax else "torch"), "")
    key, prefix = max(hits, key=lambda at: hits[at] / len(NAMES[at[0]]), default=start)
    return _with_layers(entries, plain, key, prefix)


def _checked(candidate: Candidate, entries: Entries, metadata: Mapping[str, str], where: object) -> Found:
    """Read the arrays of a candidate, and check them against its network."""
    key, prefix, members, by_order = candidate
    arrays: NamedArrays = {}
    for ours, name in members.items():
        value = entries[name].value
        if not isinstance(value, Tensor):
            raise UserError(f"{ours}: expected a tensor of {' or '.join(FLOATS)}, got {value.what}", where, NOT_THESE)
        is_ours = ours in NAMES[key]  # of others the shape will do
        arrays[ours] = value.load() if is_ours else np.broadcast_to(np.zeros((), value.dtype), value.shape)
    notes = []
    if len(kinds := {array.dtype.name for array in arrays.values()}) > 1 and kinds <= {*FLOATS}:
        widest = "float64" if "float64" in kinds else "float32"
        arrays = {name: array.astype(widest) for name, array in arrays.items()}
        notes.append(f"{' and '.join(sorted(kinds))} are mixed in it: taken as {widest}")
    try:
        network, arrays = _in_flax_naming(key[1], arrays, metadata, where)
    except UserError as problem:
        if by_order and (other := members.get(problem.what.split(": ")[0])):
            raise UserError(f"{problem.what} ({other} in it)", where, problem.todo) from None
        raise
    first, dotted = next((ours.replace("/", "."), name.replace("/", ".")) for ours, name in members.items())
    opened = dotted.removesuffix(first) if dotted.endswith(first) else prefix
    return Found(network, arrays, [*_notes(candidate, opened, entries), *notes], opened.strip("."))


def _notes(candidate: Candidate, opened: str, entries: Entries) -> Iterable[str]:
    """Say which names were opened, what was left aside, and which names were not the network's."""
    members = {name.replace("/", "."): ours for ours, name in candidate.members.items()}
    above = {name[: m.start()] for name in members for m in re.finditer(r"\.|$", name)}
    aside = dict[str, None]()
    for name in sorted(entries, key=lambda name: not isinstance(entries[name].value, Tensor)):
        dotted = name.replace("/", ".")
        if dotted not in members:
            starts = (dotted[: m.start()] for m in re.finditer(r"\.|$", dotted))
            aside[next((start for start in starts if start not in above), dotted)] = None
    more = f" and {len(aside) - 3} more" if len(aside) > 3 else ""
    left = f"left aside {', '.join(list(aside)[:3])}{more}" if aside else ""
    taken = f"took what is in {opened!r}" if opened else ""
    if taken or left:
        yield ", ".join(filter(None, (taken, left)))
    if candidate.by_order:
        named = [f"{name} is {ours}" for name, ours in members.items() if not name.endswith(ours)]
        yield f"names that are not ours, matched by shape and order: {', '.join([*named[:2], '...'])}"


def _named(plain: Plain, where: object) -> UserError | None:
    """Name a network whose weights a training has taken apart, and the repair."""
    for pattern, (what, repair) in CHANGED.items():
        if found := next((name for name in plain if re.search(pattern, name)), None):
            return UserError(f"{found}: {what}", where, f"{repair}, and save it again")
    return None


def _in_flax_naming(
    naming: Naming, arrays: NamedArrays, metadata: Mapping[str, str], where: object
) -> tuple[Network, NamedArrays]:
    """Carry arrays in either naming to Flax's, checked by the file's own names against their network."""
    entries = {entry.flax: entry for table in TABLES.values() for entry in table.expanded}

    def flax_shape(name: str, axes: int) -> tuple[int, ...]:
        if naming == "flax":
            return flax_weights.shape_of(arrays, name, axes, where)
        shape = flax_weights.shape_of(arrays, entries[name].torch, axes, where)
        return entries[name].carry_shape(shape, "flax")

    network = flax_weights.network_of(metadata, flax_shape, where)
    table = in_files(TABLES[networks.describe(network)["name"]])
    shapes = networks.variable_shapes(network)
    flax_weights.check_arrays(arrays, shapes if naming == "flax" else table.carry_shapes(shapes, "torch"), where)
    return network, arrays if naming == "flax" else table.carry(arrays, "flax")
