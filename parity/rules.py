"""Rules by kind of layer: which arrays of a PyTorch layer may be which variables of a Flax layer, in which layout."""

import itertools
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
from torch import nn

from parity.layouts import Layout, Merges, Shape, any_order, layouts

CONVOLUTIONS = {nn.Conv1d: "oiw", nn.Conv2d: "oihw", nn.Conv3d: "oidhw"}
TRANSPOSED = {nn.ConvTranspose1d: "iow", nn.ConvTranspose2d: "iohw", nn.ConvTranspose3d: "iodhw"}
# Flax modules' names for PyTorch's arrays; then names that people use.
ROLES = {
    "weight": ("kernel", "scale", "embedding", "negative_slope", "weight", "w", "gamma", "g"),
    "bias": ("bias", "b", "beta"),
    "running_mean": ("mean", "running_mean"),
    "running_var": ("var", "running_var"),
}
SYNONYMS = {"query": "q", "key": "k", "value": "v", "attention": "attn", "embedding": "embed", "kernel": "weight"}
MOST = 200  # ways of one layer that are tried


class Piece(NamedTuple):
    """An array of PyTorch, or the part of it that a Flax layer has as its own."""

    name: str  # in the `state_dict`
    array: np.ndarray
    part: int = 0  # of `parts` blocks of its first axis
    parts: int = 1
    heads: int = 0  # if the blocks lie within each of so many heads
    layouts: tuple[Layout, ...] = ()  # if not those of the layer's kind


class Row(NamedTuple):
    """One array's place in Flax's layer."""

    piece: Piece
    flax: str  # the variable, within its layer
    layout: Layout
    adds: bool = False

    @property
    def as_pytorch(self) -> bool:
        """Tell if its outputs come first, as in PyTorch and in no layer of Flax's."""
        return len(self.layout.order) > 1 and self.layout.order[0] == "o"


def axis_names(module: nn.Module | None, piece: Piece) -> tuple[str, list[str]]:
    """Name the axes of a layer's array, and the orders in which Flax may have them: by the layer's kind, else any."""
    axes = piece.array.ndim
    for kind, names in (*CONVOLUTIONS.items(), *TRANSPOSED.items()):
        if isinstance(module, kind) and axes == len(names):
            space, channels = names[2:], "io"
            if kind in CONVOLUTIONS:  # Flax's own, or PyTorch's, of those who convolve with channels first
                return names, [" ".join((*space, *channels)), " ".join(names)]
            turned = " ".join(f"-{axis}" for axis in space)
            return names, [f"{turned} i o", " ".join((*space, "o", "i")), " ".join((*space, "i", "o")), f"{turned} o i"]
    if isinstance(module, nn.Linear | nn.Bilinear) and axes == 2:
        return "oi", ["i o", "o i"]
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "vd", ["v d", "d v"]
    names = "abcdefg"[:axes]
    return names, any_order(names) if axes < 5 else [" ".join(names)]


def ways(
    module: nn.Module | None, pieces: Mapping[str, Piece], variables: Mapping[str, Shape], merges: Merges
) -> Iterator[list[Row]]:
    """List the ways in which a layer's arrays may be a Flax layer's variables, the most usual first."""
    theirs, ours = list(pieces), list(variables)
    if len(theirs) <= len(ours):
        pairings = [list(zip(theirs, chosen, strict=True)) for chosen in itertools.permutations(ours, len(theirs))]
    else:
        pairings = [list(zip(chosen, ours, strict=True)) for chosen in itertools.permutations(theirs, len(ours))]
    choices = [(-sum(_role(*pair) for pair in pairs), pairs) for pairs in pairings]
    for _, pairs in sorted(choices, key=lambda choice: choice[0])[:24]:
        rows = [list(_rows(module, pieces[theirs], ours, variables[ours], merges)) for theirs, ours in pairs]
        for chosen_rows in itertools.islice(itertools.product(*rows), MOST):
            yield list(chosen_rows)


def _rows(module: nn.Module | None, piece: Piece, flax: str, shape: Shape, merges: Merges) -> Iterator[Row]:
    """List the layouts in which one array fits a variable."""
    names, orders = axis_names(module, piece)
    found = dict[str, Row]()
    for layout in piece.layouts or layouts(names, piece.array.shape, orders, merges):
        if pattern := layout.pattern(shape):
            found.setdefault(str(pattern), Row(piece, flax, layout))
    yield from (found[pattern] for pattern in sorted(found, key=lambda p: "(" in p.partition(" -> ")[0][2:]))


def _role(theirs: str, ours: str) -> float:
    """Return how well the names of two arrays of a layer go together."""
    last = ours.rpartition("/")[2]
    for role, names in ROLES.items():
        if theirs == role and last in names:
            return 2.0 - names.index(last) / 10
        if theirs != role and last in names[:3] and theirs in ROLES:
            return -1.0
    return likeness(theirs, ours)


def likeness(theirs: str, ours: str) -> float:
    """Return how alike two names are, from 0 to 1: the last parts count most."""

    def parts(name: str) -> list[str]:
        words = name.lower().replace("/", ".").split(".")
        return [SYNONYMS.get(word, word) for word in words]

    one, two = parts(theirs), parts(ours)
    last = SequenceMatcher(None, one[-1], two[-1]).ratio() + (
        one[-1][:1] == two[-1][:1] and len(min(one[-1], two[-1], key=len)) == 1
    )
    whole = SequenceMatcher(None, ".".join(one), ".".join(two)).ratio()
    return 0.6 * min(1.0, last) + 0.4 * whole


GATES = {(nn.LSTM, nn.LSTMCell): "ifgo", (nn.GRU, nn.GRUCell): "rzn", (nn.RNN, nn.RNNCell): ""}
CELL = "cell"  # the layer of a module that is one step of a recurrence


def gates(
    module: nn.Module, path: str, layer: str, variables: Mapping[str, Shape], state: Mapping[str, np.ndarray]
) -> list[Row] | None:
    """Give the rows of a recurrent layer's cell: gates apart or together; Flax has one bias where PyTorch has two."""
    order, rows = next(gates for kinds, gates in GATES.items() if isinstance(module, kinds)), list[Row]()
    suffix = "" if layer == CELL else f"_{layer}"
    for side, other in ("ih", "hi"):
        together = next((name for name in (f"dense_{side}", side) if f"{name}/kernel" in variables), None)
        for part, gate in enumerate([""] if together else order):
            names = [together] if together else [f"{side}{gate}", f"{side}{gate}_"]
            others = [f"dense_{other}", other] if together else [f"{other}{gate}", f"{other}{gate}_"]
            kernel = next((f"{name}/kernel" for name in names if f"{name}/kernel" in variables), None)
            bias = next((f"{name}/bias" for name in (*names, *others) if f"{name}/bias" in variables), None)
            if kernel is None:
                return None
            for kind, flax, axes, turned in (("weight", kernel, "oi", "i o"), ("bias", bias, "o", "o")):
                name = f"{path}.{kind}_{side}h{suffix}".lstrip(".")
                inside = name.endswith(f"bias_hh{suffix}") and gate in ("n", "") and order == "rzn"  # of r * (...)
                if flax and name in state and not (inside and flax.rpartition("/")[0] not in names):
                    piece = Piece(name, state[name])
                    piece = piece if together else cut(piece, part, len(order), 0)
                    layout = next(layouts(axes, piece.array.shape, [turned], {}))
                    rows.append(Row(piece, flax, layout, any(row.flax == flax for row in rows)))
    return rows


def cut(piece: Piece, part: int, parts: int, heads: int) -> Piece:
    """Give one of the blocks of an array's first axis: whole blocks, or within each head."""
    array = piece.array
    if heads:
        split = array.reshape(heads, parts, -1, *array.shape[1:])[:, part].reshape(-1, *array.shape[1:])
    else:
        split = np.split(array, parts)[part]
    return Piece(piece.name, split, part, parts, heads)


def of_blocks(names: list[str], all_names: list[str], dot: str) -> list[str]:
    """List the arrays whose module has modules with arrays inside."""
    owners = {name: name.rpartition(dot)[0] for name in all_names}
    inside = set(owners.values())
    block = lambda owner: any(other != owner and other.startswith(owner + dot if owner else "") for other in inside)  # noqa: E731
    return [name for name in names if block(owners[name])]
