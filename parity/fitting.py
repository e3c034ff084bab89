"""Which classic mistakes fit a pair: one of each kind that it has a layer for, spread over the network."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from parity import mistakes
from parity.calls import as_numpy, leaves
from parity.flax_layer import variables_of
from parity.flax_trace import Site
from parity.matched import Matched
from parity.mistakes import Control
from parity.pair import label, named
from parity.table import Entry

CONVOLUTIONS = frozenset({"Conv", "ConvLocal", "ConvTranspose"})
NORMS = frozenset({"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"})
BIASED = CONVOLUTIONS | NORMS | {"Dense", "DenseGeneral", "Linear", "LinearGeneral"}  # they add their bias at the end
DROPPING = frozenset({"Dropout", "MultiHeadAttention", "MultiHeadDotProductAttention"})
FIRST, MIDDLE, LAST = 0.0, 0.5, 1.0  # places in the network


class Layer(NamedTuple):
    """A layer of Flax whose output is compared."""

    path: str
    tensor: str  # what its output is called; nothing if it is not compared
    module: Any
    kinds: frozenset[str]  # Flax's own classes that it is an instance of
    shape: tuple[int, ...]  # of its input
    variables: frozenset[str]


def controls(matched: Matched) -> list[Control]:
    """List the mistakes that fit a pair, each with the comparison that must notice it first."""
    found = layers(matched)
    made = [*_inputs(matched), *_axes(matched, found), *_layers(found), *_results(matched, found)]
    return [*made, *_modes(matched, found), *_optimizers(matched)] if matched.trained else made


def layers(matched: Matched) -> dict[str, Layer]:
    """Find Flax's layers by path, those whose outputs are compared first, in order of execution."""
    seen, tensors = dict[str, Layer](), {e.flax: label(e) for e in matched.names.activations}

    def around(site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        if site.method == "__call__" and site.path not in seen:
            kinds = {c.__name__ for c in type(site.module).__mro__ if c.__module__.startswith("flax.")}
            shape = next((tuple(leaf.shape) for _, leaf in leaves([*args])), ())
            floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for _, leaf in leaves(output))
            tensor, variables = tensors.get(site.path, "") if floating else "", frozenset(variables_of(site.module))
            seen[site.path] = Layer(site.path, tensor, site.module, frozenset(kinds), shape, variables)
        return output

    variables = matched.whole(matched.pair("float64").variables(matched.case().weights))
    matched.given.flax_run(variables, "float64", around=around, eager=True)
    return {path: seen[path] for path in dict.fromkeys([*tensors, *seen]) if path in seen}


def pick(some: Sequence[Any], place: float) -> Any:
    """Give a list of the first, the middle or the last item; an empty one if there are none."""
    return [some[int(place * (len(some) - 1))]] if some else []


def _inputs(matched: Matched) -> Iterator[Control]:
    """Reverse the largest input, a floating one if there is any, along its last axis."""
    given = enumerate(jax.tree.leaves(matched.given.flax_inputs))
    arrays = [(i, as_numpy(leaf)) for i, leaf in given if any(True for _ in leaves(leaf))]
    fits = [(i, array) for i, array in arrays if max(array.shape, default=0) > 1]
    for i, array in pick(sorted(fits, key=lambda fit: (fit[1].dtype.kind == "f", fit[1].size)), LAST):
        axis = max(axis for axis, size in enumerate(array.shape) if size > 1)
        image = array.ndim in (4, 5) and axis == array.ndim - 1
        name = "channels of the input reversed" if image else f"input {i} reversed along axis {axis}"
        link = "activations" if matched.names.activations else "outputs"
        yield Control(name, (link, "", ""), mistakes.one_input(i, partial(jnp.flip, axis=axis)))


def _axes(matched: Matched, found: dict[str, Layer]) -> Iterator[Control]:
    """Swap two axes of the same size in the table."""
    swaps = list[tuple[str, Entry]]()
    for entry in matched.table.expanded:
        path, shape = entry.flax.rpartition("/")[0], matched.given.shapes.get(f"{entry.collection}/{entry.flax}")
        before, after = (side.split() for side in entry.axes.split(" -> "))
        plain = not any(set(axis) & set("(-") for axis in (*before, *after))
        if shape is None or entry.adds or not plain or path not in found or not found[path].tensor:
            continue
        size = dict(zip(after, shape.shape, strict=True))
        if equal := [(a, b) for a in after for b in after if a < b and size[a] == size[b] > 1][:1]:
            other = {**dict(zip(after, after, strict=True)), **dict(equal), **{b: a for a, b in equal}}
            pattern = f"{' '.join(before)} -> {' '.join(other[axis] for axis in after)}"
            swaps.append((found[path].tensor, entry._replace(axes=pattern)))
    for tensor, entry in pick(sorted(swaps, key=lambda swap: not swap[1].flax.endswith("/kernel")), FIRST):
        yield Control(f"axes of {entry.flax} exchanged", ("activations", tensor, ""), mistakes.entry(entry))


def _layers(found: dict[str, Layer]) -> Iterator[Control]:
    """Compute a layer's output in another way."""
    known = [layer for layer in found.values() if layer.tensor]
    convolutions = [c for c in known if c.kinds & CONVOLUTIONS and len(c.shape) > 2 and c.shape[1] > 1]
    biased = [layer for layer in known if layer.kinds & BIASED and "params/bias" in layer.variables]
    norms = [layer for layer in known if layer.kinds & NORMS and hasattr(layer.module, "epsilon")]
    for name, some, place, wrong in (
        ("{} shifted by a pixel", convolutions, MIDDLE, mistakes.shifted),
        ("bias of {} left out", biased, LAST, mistakes.unbiased),
        ("epsilon of {} tenfold", norms, MIDDLE, lambda path: mistakes.attribute(path, "epsilon", lambda e: 10 * e)),
        ("output of {} a millionth too large", known, FIRST, mistakes.scaled),
        ("output of {} a millionth too large", known[1:], LAST, mistakes.scaled),
    ):  # fmt: skip
        for layer in pick(some, place):
            yield Control(name.format(layer.path), ("activations", layer.tensor, ""), wrong(layer.path))


def _results(matched: Matched, found: dict[str, Layer]) -> Iterator[Control]:
    """Swap rows of the output, double the user's loss, and halve the gradient of a layer."""
    outputs = named(matched.given.reference[0], "output")
    if any(max(outputs[e.torch].shape[:1], default=0) > 1 for e in matched.names.outputs):
        yield Control("rows of the output exchanged", ("outputs", "", ""), mistakes.rows)
    if matched.loss:
        yield Control("loss doubled", ("outputs", "loss", ""), mistakes.loss(lambda right, *given: 2 * right(*given)))
    trained = {e.flax.rpartition("/")[0] for name in matched.pair("float64").trained
               if (e := matched.table.carried.get(name))}  # fmt: skip
    for layer in pick([layer for layer in found.values() if layer.tensor and layer.path in trained], MIDDLE):
        yield Control(f"gradient of {layer.path} halved", ("gradients", "", ""), mistakes.half_stopped(layer.path))


def _modes(matched: Matched, found: dict[str, Layer]) -> Iterator[Control]:
    """Draw other masks, and keep other statistics."""
    _, seen, draws = matched.trained.draws
    own = [found[path] for e in draws if (path := seen.draws[e.flax].path) in found]
    whole = [d for d in own if "Dropout" in d.kinds and not d.module.broadcast_dims and max(d.shape[:1], default=0) > 1]
    rates = [(layer, name) for layer in own for name in ("rate", "dropout_rate")
             if layer.kinds & DROPPING and 0 < getattr(layer.module, name, 0.0) < 1]  # fmt: skip
    for layer in pick(whole, FIRST):
        yield Control(f"mask of {layer.path} the same for all rows", ("masks", "", ""),
                      mistakes.attribute(layer.path, "broadcast_dims", lambda own: (0,)))  # fmt: skip
    for layer, name in pick(rates, LAST):
        yield Control(f"rate of {layer.path} halved", ("masks", "", ""),
                      mistakes.attribute(layer.path, name, lambda rate: rate / 2))  # fmt: skip
    norms = [layer for layer in found.values() if "BatchNorm" in layer.kinds and hasattr(layer.module, "momentum")]
    for layer in pick(norms if matched.trained.how.statistics else [], MIDDLE):
        yield Control(f"momentum of {layer.path} wrong", ("statistics", "", ""),
                      mistakes.attribute(layer.path, "momentum", lambda own: 0.9 if own == 0.99 else 0.99))  # fmt: skip


def _optimizers(matched: Matched) -> Iterator[Control]:
    """Take other steps, by leaving out what the optimizer has."""
    trained, start, _, states, *_ = matched.trained
    optimizer, params = trained.optimizer[1], trained.pair.variables(start)["params"]
    ones, zeros, state = optax.tree.ones_like(params), optax.tree.zeros_like(params), optimizer.init(params)
    moves, bare = (optimizer.update(ones, state, of)[0] for of in (params, zeros))
    decays = not optax.tree.allclose(moves, bare, rtol=1e-12, atol=0)
    first = "step" if any(jnp.any(leaf) for leaf in jax.tree.leaves(moves)) else "trajectory"
    remembers = any(jnp.size(leaf) > 1 for leaf in jax.tree.leaves(state))
    for name, fits, link, wrong in (
        ("learning rate 1 % more", True, first, mistakes.faster),
        ("weight decay forgotten", decays, first, mistakes.undecayed),
        ("momentum forgotten", remembers, "trajectory", mistakes.forgetful),
    ):
        if fits and (link == "step" or len(states) > 1):
            yield Control(name, (link, "", ""), mistakes.optimizer(wrong))
