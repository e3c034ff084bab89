"""The guided run: Flax's module is run once, and each of its layers is recognised by its input.

If a layer's input has the values of a PyTorch layer's input, in any order of axes, it is that layer. Its variables are
filled with that layer's arrays in each way that their shapes allow, and it is run: the way that gives PyTorch's output
is right. PyTorch's output is passed on, so that one wrong layer does not hide the next.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn.errors import UserError
from jaxcnn.files import flat_names
from parity.calls import leaves
from parity.flax_layer import FlaxLayer, is_cell, variables_of
from parity.flax_trace import Site
from parity.given import Given
from parity.layouts import found, usual
from parity.rules import SYNONYMS, Row, gates, likeness, of_blocks, ways
from parity.table import Entry, Table
from parity.units import Unit, block, interleave, join, units

TRIED = 32  # ways of a layer that are run
NEAREST, ALSO = 6, 2  # layers that are tried although their inputs differ: the next ones, and others by their names
ALIKE, SAME, STEP, BACK = 0.3, 0.7, 0.05, 0.5  # what decides where values do not: names, and the order of execution
Way = list[Row]


class Placed(NamedTuple):
    """An array of PyTorch in its place."""

    row: Row
    flax: str  # `params/Dense_0/kernel`
    slice: int | None  # of the variable, if a loop stacks them


class Match(NamedTuple):
    """A call of PyTorch and the call of Flax that is taken for it."""

    torch: str
    flax: str
    same_output: bool


class Guided:
    """One guided run, and what came out: places, matches, doubts."""

    def __init__(
        self, given: Given, places: list[Placed], heads: int = 0,
        picks: Mapping[str, int] | None = None, table: Table | None = None,
    ) -> None:  # fmt: skip
        self.state, self.heads, self.picks = given.random, heads, picks or {}
        self.places, self.matches, self.doubts = list(places), list[Match](), list[str]()
        self.doubted = set[str]()  # paths of Flax's layers that values do not prove
        self.shapes = {name: tuple(leaf.shape) for name, leaf in given.shapes.items()}
        self.fused, self.choices = False, dict[str, int]()  # of fused projections; calls that are as good as others
        rng, whole = np.random.default_rng(1), {n for n, leaf in given.shapes.items() if leaf.dtype.kind != "f"}
        self.values = {
            name: np.zeros(shape, given.shapes[name].dtype) if name in whole else rng.normal(0, 0.1, shape)
            for name, shape in self.shapes.items()
        }
        self.placed: dict[tuple[str, int | None], str] = {}
        for place in places:
            self.put(place)
        if table is not None:
            self.tell(table)
        output, trace = given.reference
        theirs = [leaf.detach().numpy() for _, leaf in leaves(output)]
        self.units, self.merges = units(given.modules["float64"], trace, self.state, given.tied), trace.merges
        self.busy, self.counts, self.last = False, Counter[str](), -1
        self.given = given
        # A layer's arrays stay those that are filled on the way, since a tied head may look at them; `.at` needs JAX's.
        own = {*of_blocks([*self.shapes], [*self.shapes], "/"), *(n for n in self.shapes if n.count("/") == 1)}
        raw = {name: jnp.asarray(value) if name in own else value for name, value in self.values.items()}
        variables = unflatten_dict(raw, sep="/")
        try:
            (output, _), _ = given.flax_run(variables, "float64", around=self.around, eager=True)
        except UserError:
            if given.same_shapes:
                raise
            given.same_shapes = True
            self.__init__(given, places, heads, picks, table)  # type: ignore[misc]
            return
        ours = [np.asarray(leaf) for _, leaf in leaves(output)]
        right = [m.same_output for m in self.matches] + [any(found(t, o, self.merges) for o in ours) for t in theirs]
        self.score, self.perfect = sum(right), all(right)

    def tell(self, table: Table) -> None:
        """Fill all variables by a table."""
        self.values |= {n: v for n, v in flat_names(table.to_flax(self.state)).items() if n in self.shapes}
        for entry in table.expanded:
            theirs = entry.names("torch")[0]
            for name in entry.names("flax")[0]:
                full = f"{entry.collection}/{name}"
                self.placed |= {(full, i): one for i, one in enumerate(theirs)} | {(full, None): theirs[0]}

    def put(self, place: Placed) -> None:
        """Fill a variable, or a slice of it."""
        row, name, index = place
        pattern, sizes = row.layout.pattern(self.shapes[name] if index is None else self.shapes[name][1:]) or ("", {})
        value, where = Entry("", "", pattern, sizes).carry(row.piece.array, "flax"), ... if index is None else index
        self.values[name][where] = self.values[name][where] + value if row.adds else value
        self.placed[name, index] = row.piece.name

    def around(self, site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Recognise the layer that is called; give its output as PyTorch has it."""
        layer = None if self.busy else self.layer(site, call, args, kwargs)
        if layer is None:
            return call(*args, **kwargs)
        known = all(place in self.placed for place in layer.places)
        if site.method != "__call__":
            return self.run(layer) if known and hasattr(type(site.module), site.method) else call(*args, **kwargs)
        self.counts[site.path] += 1
        if is_cell(site.module):
            if not known:
                self.recurrent(layer)
            return self.run(layer)
        return self.again(layer) if known else self.recognise(layer)

    def layer(self, site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> FlaxLayer | None:
        """Make a layer of a call, if its module has variables of its own and is no block of other layers."""
        variables = variables_of(site.module)
        if any(isinstance(value, jax.core.Tracer) for value in variables.values()):  # inside `nn.vmap`
            return None
        own = {name: value.shape for name, value in variables.items()}
        keys = {leaf: f"{collection}/{site.path}/{leaf}" for collection, _, leaf in (n.partition("/") for n in own)}
        block = any("/" in leaf for leaf in keys) and not is_cell(site.module)
        if not keys or block or any(name not in self.shapes for name in keys.values()):
            return None
        shapes = {name.partition("/")[2]: shape for name, shape in own.items()}
        stacked = any(self.shapes[keys[leaf]] != shape for leaf, shape in shapes.items())
        return FlaxLayer(site, call, args, kwargs, keys, shapes, self.counts[site.path] if stacked else None)

    def run(self, layer: FlaxLayer) -> Any:
        """Run a layer with the values that are placed by now."""
        self.busy = True
        try:
            return layer.execute(self.values)
        finally:
            self.busy = False

    def again(self, layer: FlaxLayer) -> Any:
        """Run a layer whose variables are known: one that is called again, or that was told."""
        names = {self.placed[place] for place in layer.places}
        same = (
            u for u in self.units if u.free and u.output is not None and names & {p.name for p in u.pieces.values()}
        )
        unit = next(same, None)
        if unit is None:
            return self.run(layer)
        unit.take()
        return self.finish(layer, unit, self.run(layer))

    def recognise(self, layer: FlaxLayer) -> Any:
        """Find the unit that this layer is, place its arrays, and give its output."""
        free = [u for u in self.units if u.free and not u.layer]
        ranked = sorted(free, key=lambda u: self.distance(u) - self.alike(u, layer))
        fed = [u for u in ranked if u.input is not None and found(u.input, layer.input, self.merges)]
        fed += [part for unit in fed for part in self.part_of(unit, layer)] + self.joined(fed, layer)
        fed += [turned for unit in fed for turned in self.turned(unit)]
        fitting = {unit: self.ways(unit, layer, TRIED) for unit in fed}
        proven = self.proven(fitting, layer)
        if not proven:  # one that pads, say, what the other is given padded
            others = [unit for unit in ranked if unit not in fitting]
            others = others[:NEAREST] + sorted(others[NEAREST:], key=lambda u: -self.alike(u, layer))[:ALSO]
            proven = self.proven({unit: self.ways(unit, layer, 4) for unit in others}, layer)[:1]
        if proven:
            self.choices[layer.site.name] = len(proven)
            proven.sort(key=lambda shown: not (self.heads and shown[0].origins))  # if heads are tried, what has them
            unit, way = proven[self.picks.get(layer.site.name, 0) % len(proven)]
        else:
            pool = [unit for unit in fed if fitting[unit]] or ranked
            likely = ((u, _flattened(some)) for u in pool if (some := self.ways(u, layer, 4)))
            if (first := next(likely, None)) is None:
                return self.run(layer)
            largest = max(layer.shapes, key=lambda name: prod(layer.shapes[name]))  # not a bias alone
            whole = lambda one: any(row.flax == largest for row in one[1])  # noqa: E731
            unit, way = first if whole(first) else next(filter(whole, likely), first)
            if len(fitting.get(unit, ())) != 1:
                why = "its output differs in every layout" if unit in fed else "what it is given differs"
                self.doubts.append(f"{unit.path} is {layer.site.path}: by name, shape and order only ({why})")
                self.doubted.add(layer.site.path)
        self.places += self.place(way, layer)
        unit.take()
        return self.finish(layer, unit, self.run(layer))

    def distance(self, unit: Unit) -> float:
        """Return the distance of a unit from the one that was found last; going back counts more."""
        steps = self.units.index(unit) - self.last
        return STEP * steps if steps > 0 else BACK - STEP * steps

    def alike(self, unit: Unit, layer: FlaxLayer) -> float:
        """Return how much the names favour it."""
        same = likeness(unit.path, layer.site.path)
        return ALIKE * same + (SAME if same > 0.95 else 0)

    def ways(self, unit: Unit, layer: FlaxLayer, most: int) -> list[Way]:
        """List ways in which a unit's arrays may be a layer's variables."""
        return list(islice(ways(unit.module, unit.pieces, layer.shapes, self.merges), most))

    def proven(self, fitting: Mapping[Unit, list[Way]], layer: FlaxLayer) -> list[tuple[Unit, Way]]:
        """List the units, each with the way, in which Flax's layer gives PyTorch's output."""
        shown = []
        for unit, some in fitting.items():
            for way in some:
                self.place(way, layer)
                if self.same(unit, self.run(layer)):
                    shown.append((unit, way))
                    break
        return shown

    def place(self, way: Way, layer: FlaxLayer) -> list[Placed]:
        """Fill a layer's variables."""
        places = [Placed(row, layer.keys[row.flax], layer.index) for row in way]
        for place in places:
            self.put(place)
        return places

    def part_of(self, unit: Unit, layer: FlaxLayer) -> list[Unit]:
        """Cut the projection of Flax's layer out of a fused one, if possible."""
        weight = unit.pieces.get("weight")
        if weight is None or weight.array.ndim != 2 or weight.parts > 1 or unit.output is None:
            return []
        out, own = len(weight.array), max(map(prod, layer.shapes.values())) // weight.array.shape[1]
        parts = out // own if own and out % own == 0 else 1
        left = [part for part in range(parts) if part not in unit.taken]
        if not 1 < parts < 7 or not left:
            return []
        self.fused = True
        last = layer.site.path.rpartition("/")[2].lower()
        named = "qkv".find(SYNONYMS.get(last, last)[:1])
        part = named if parts == 3 and named in left else left[0]
        return [block(unit, part, parts, self.heads_of(own))]

    def heads_of(self, rows: int) -> int:
        """Give the number of heads that is tried, if it divides the rows; else 0."""
        return self.heads if self.heads and rows % self.heads == 0 else 0

    def joined(self, fed: list[Unit], layer: FlaxLayer) -> list[Unit]:
        """Join projections of one input, if Flax's layer can be all of them together."""
        weights = {u: u.pieces["weight"].array for u in sorted(fed, key=self.units.index) if "weight" in u.pieces}
        some = [u for u, weight in weights.items() if weight.ndim == 2 and not u.taken and u.output is not None]
        count = max(map(prod, layer.shapes.values())) // weights[some[0]].size if some else 1
        if not 1 < count <= len(some) or len({(weights[u].shape, *u.pieces) for u in some[:count]}) > 1:
            return []
        names = {u.pieces["weight"].name for u in some[:count]}
        if len(names) == 1 and len(self.state[names.pop()]) != count * len(weights[some[0]]):  # parts of what has more
            return []
        self.fused = True
        return [join(some[:count], self.heads_of(len(weights[some[0]])))]

    def turned(self, unit: Unit) -> list[Unit]:
        """Take a projection of queries, keys and values as one whose rows are head by head, if it can be."""
        weight = unit.pieces.get("weight")
        if unit.origins or unit.output is None or weight is None or len(weight.array) != 3 * weight.array[0].size:
            return []
        self.fused = True
        return [interleave(unit, self.heads)] if self.heads and len(weight.array) % (3 * self.heads) == 0 else []

    def recurrent(self, layer: FlaxLayer) -> None:
        """Fill a recurrent cell with the next layer and direction of PyTorch's."""
        for unit in (u for u in self.units if u.layer and u.free):
            rows = gates(unit.module, unit.path, unit.layer, layer.shapes, self.state)
            if rows and all(row.layout.pattern(layer.shapes[row.flax]) for row in rows):
                self.places += self.place(rows, layer)
                unit.take()
                return

    def same(self, unit: Unit, output: Any) -> bool:
        """Tell if an output is a unit's."""
        return unit.output is not None and hasattr(output, "shape") and bool(
            found(unit.output, np.asarray(output), self.merges))  # fmt: skip

    def finish(self, layer: FlaxLayer, unit: Unit, output: Any) -> Any:
        """Note the match; give the layer's own output if it is PyTorch's, else PyTorch's in its layout."""
        same = self.same(unit, output)
        self.last = max((self.units.index(u) for u in (unit.origins or (unit,)) if u in self.units), default=self.last)
        call = f"{unit.call}:" if unit.origins else unit.call  # a part of one, or several: no call is this
        self.matches.append(Match(call, layer.site.name, same))
        if same or unit.output is None or not hasattr(output, "shape"):
            return output
        theirs = Entry("", "", *usual(unit.output.shape, output.shape, self.merges)).carry(unit.output, "flax")
        return jnp.asarray(theirs) if theirs.shape == output.shape or not self.given.same_shapes else output


def layer_of(variable: str) -> str:
    """Give the path of the layer that has a variable: `Dense_0` of `params/Dense_0/kernel`."""
    return variable.partition("/")[2].rpartition("/")[0]


def _flattened(some: list[Way]) -> Way:
    """Choose a way when nothing proves one: after a flatten, that of images with channels last."""
    return next((way for way in some if any(len(axis) > 2 for row in way for axis in row.layout.axes)), some[0])
