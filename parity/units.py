"""The layers of a PyTorch module that was seen at work, one for each call: what Flax's layers are matched with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from jaxcnn.files import NamedArrays
from parity.calls import Call, Trace
from parity.layouts import Layout
from parity.rules import CELL, Piece, cut

LINEAR = nn.Linear(1, 1, device="meta")  # stands for the projections inside PyTorch's attention, which are no modules


@dataclass(eq=False)
class Unit:
    """One call of a layer that has arrays of its own; or a part of one, or several that are one in Flax."""

    call: str
    path: str
    module: nn.Module
    pieces: dict[str, Piece]  # its arrays, by their names within the layer
    input: np.ndarray | None
    output: np.ndarray | None
    layer: str = ""  # of a recurrent module: `l0`, `l0_reverse`; `cell` of one that is a step alone
    origins: tuple["Unit", ...] = ()  # what it is a part of, or made of
    part: int = 0
    parts: int = 1
    taken: set[int] = field(default_factory=set)  # parts that Flax's layers have

    @property
    def free(self) -> bool:
        """Tell if a part of it is in no layer of Flax yet."""
        return len(self.taken) < self.parts

    def take(self) -> None:
        """Note that a layer of Flax has it."""
        for unit in self.origins or (self,):
            unit.parts = self.parts
            unit.taken.add(self.part)


def block(unit: Unit, part: int, parts: int, heads: int) -> Unit:
    """Cut one of the projections out of a fused one: queries, keys or values."""
    pieces = {name: cut(piece, part, parts, heads) for name, piece in unit.pieces.items()}
    output = np.moveaxis(cut(Piece("", np.moveaxis(_known(unit.output), -1, 0)), part, parts, heads).array, 0, -1)
    return Unit(unit.call, unit.path, unit.module, pieces, unit.input, output, origins=(unit,), part=part, parts=parts)


def interleave(unit: Unit, heads: int) -> Unit:
    """Give a fused projection whose rows are by head, then query, key and value, as one of whole blocks."""
    pieces = {}
    for name, piece in unit.pieces.items():
        rows = (("h", heads), ("s", 3), ("d", len(piece.array) // heads // 3))
        axes = (rows, *((("i", size),) for size in piece.array.shape[1:]))
        pieces[name] = piece._replace(layouts=(Layout(axes, (*"i" * (len(axes) - 1), "s", "h", "d")),))
    output = _known(unit.output)
    split = output.reshape(*output.shape[:-1], heads, 3, -1)
    return replace(
        unit, pieces=pieces, output=split.swapaxes(-3, -2).reshape(output.shape), origins=(unit,), taken=set()
    )


def join(some: list[Unit], heads: int) -> Unit:
    """Join projections of one input that are one layer in Flax: block after block, or within each head."""
    count, pieces, lead = len(some), {}, some[0]
    for name in lead.pieces:
        names, arrays = [u.pieces[name].name for u in some], [u.pieces[name].array for u in some]
        whole = len({*names}) == 1  # PyTorch's attention, which has them in one array
        rows = (("h", heads), ("d", len(arrays[0]) // heads)) if heads else (("o", len(arrays[0])),)
        blocks, rest = (("s", count),), (("i", arrays[0].shape[-1]),)
        axes = ((blocks + rows,) if whole else (blocks, rows)) + ((rest,) if arrays[0].ndim > 1 else ())
        order = ("i",) * (arrays[0].ndim > 1) + (("h", "s", "d") if heads else ("s", "o"))
        array = np.concatenate(arrays) if whole else np.stack(arrays)
        pieces[name] = Piece(names[0] if whole else brace("s", names), array, layouts=(Layout(axes, order),))
    split = np.stack([_known(u.output) for u in some])
    split = split.reshape(*split.shape[:-1], heads or 1, -1)  # s ... h d
    output = np.moveaxis(split, 0, -2 if heads else -3).reshape(*split.shape[1:-2], -1)
    return Unit(lead.call, lead.path, LINEAR, pieces, lead.input, output, origins=tuple(some))


def _known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def _alike(names: list[str]) -> int:
    """Count the letters with which all names begin."""
    differ = (i for i, letters in enumerate(zip(*names, strict=False)) if len({*letters}) > 1)
    return next(differ, min(map(len, names)))


def brace(label: str, names: list[str]) -> str:
    """Write names that differ in one place as one, with a brace that is an axis: `h.{l=0..2}.weight`."""
    start = _alike(names)
    stop = _alike([name[start:][::-1] for name in names])
    middles = [name[start : len(name) - stop] for name in names]
    numbers = [int(middle) for middle in middles if middle.isdigit()]
    running = numbers == list(range(numbers[0], numbers[0] + len(names))) if len(numbers) == len(names) else False
    inside = f"{numbers[0]}..{numbers[-1]}" if running else ",".join(middles)
    return f"{names[0][:start]}{{{label}={inside}}}{names[0][len(names[0]) - stop :]}"


def units(module: nn.Module, trace: Trace, state: NamedArrays, tied: Mapping[str, str]) -> list[Unit]:
    """List the calls of all layers with arrays, in order of execution."""
    made: list[Unit] = []
    for name, call in trace.calls.items():
        layer = module.get_submodule(call.path.replace("/", "."))
        path = call.path.replace("/", ".")
        if isinstance(layer, nn.MultiheadAttention):
            made += _projections(name, path, layer, call, state)
        elif isinstance(layer, nn.RNNBase):
            made += _layers(name, path, layer, call)
        elif isinstance(layer, nn.LSTMCell | nn.GRUCell | nn.RNNCell):
            made += [Unit(name, path, layer, {}, None, None, CELL)] if all(unit.path != path for unit in made) else []
        elif isinstance(layer, ParametrizationList):  # it makes a layer's array, and is none
            continue
        elif not any(_arrays(inner, f"{path}.{child}", state) for child, inner in layer.named_modules() if child):
            pieces = _arrays(layer, path, state)
            if pieces:
                made.append(Unit(name, path, layer, pieces, _first(call.inputs), _first(call.outputs)))
    for unit in made:  # what is tied is known by its first name
        unit.pieces = {n: piece._replace(name=tied.get(piece.name, piece.name)) for n, piece in unit.pieces.items()}
    return made


def _arrays(layer: nn.Module, path: str, state: NamedArrays) -> dict[str, Piece]:
    """Give the arrays that a layer has itself: parameters, and buffers that are numbers with a point."""
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    full = {name: f"{path}.{name}" for name, _ in own}
    return {n: Piece(f, state[f]) for n, f in full.items() if f in state and state[f].dtype.kind == "f"}


def _first(values: dict[str, Any]) -> np.ndarray | None:
    return next((value.numpy() for value in values.values()), None)


def _projections(name: str, path: str, layer: Any, call: Call, state: NamedArrays) -> Iterator[Unit]:
    """Give the four projections of an attention: their weights are in one array, and no module is called for them."""
    given = {place: value.numpy() for place, value in call.inputs.items()}
    for part, (letter, word) in enumerate((("q", "query"), ("k", "key"), ("v", "value"))):
        if f"{path}.in_proj_weight" in state:
            pieces = {"weight": cut(Piece(f"{path}.in_proj_weight", state[f"{path}.in_proj_weight"]), part, 3, 0)}
        else:
            pieces = {"weight": Piece(f"{path}.{letter}_proj_weight", state[f"{path}.{letter}_proj_weight"])}
        bias = np.zeros(())
        if f"{path}.in_proj_bias" in state:
            pieces["bias"] = cut(Piece(f"{path}.in_proj_bias", state[f"{path}.in_proj_bias"]), part, 3, 0)
            bias = pieces["bias"].array
        x = given[str(part)] if str(part) in given else given[word]
        yield Unit(f"{name}:{letter}", f"{path}.{letter}", LINEAR, pieces, x, x @ pieces["weight"].array.T + bias)
    pieces = {n: Piece(f, state[f]) for n in ("weight", "bias") if (f := f"{path}.out_proj.{n}") in state}
    output = next(iter(call.outputs.values())).numpy()
    heads = (output - (pieces["bias"].array if "bias" in pieces else 0)) @ np.linalg.pinv(pieces["weight"].array).T
    yield Unit(f"{name}:out", f"{path}.out_proj", LINEAR, pieces, heads, output)


def _layers(name: str, path: str, layer: nn.RNNBase, call: Call) -> Iterator[Unit]:
    """Give the layers and directions of a recurrent module."""
    output = next(iter(call.outputs.values())).numpy()
    for number in range(layer.num_layers):
        for end in ("", "_reverse")[: 1 + layer.bidirectional]:
            x = _first(call.inputs) if number == 0 else None
            yield Unit(f"{name}:l{number}{end}", path, layer, {}, x, output, f"l{number}{end}")
