"""Classic mistakes of ports, each a function from a pair to the pair with the mistake made on Flax's side."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from parity.flax_layer import variables_of
from parity.flax_trace import Operation
from parity.table import Entry

Mistake = Callable[[Any], Any]  # a pair of any kind to another of that kind


class Control(NamedTuple):
    """A mistake made on purpose, and the first comparison that has to fail."""

    name: str
    first: tuple[str, str, str] | None  # its link, tensor and case; None if none has to
    mistake: Mistake


class Tried(NamedTuple):
    """The result of a control."""

    name: str
    expected: str  # the comparison that has to fail first
    caught_by: str | None  # the one that did; None if none did
    passed: bool


def axes(flax: str, pattern: str) -> Mistake:
    """Carry an entry of the table, by its Flax name, with wrong axes."""
    return lambda pair: replace(pair, table=pair.table.with_axes(flax, pattern))


def entry(wrong: Entry) -> Mistake:
    """Put an entry in the place of those of the same arrays."""
    return lambda pair: replace(pair, table=pair.table.with_entries(wrong))


def inputs(wrong: Callable[[Array], Array]) -> Mistake:
    """Prepare Flax's input in another way."""
    return lambda pair: replace(pair, flax_input=lambda *given: tuple(map(wrong, pair.flax_input(*given))))


def one_input(place: int, wrong: Callable[[Array], Array]) -> Mistake:
    """Prepare one of Flax's input arrays in another way."""

    def prepared(pair: Any, given: Any) -> Any:
        arrays, structure = jax.tree.flatten(pair.flax_input(*given))
        return jax.tree.unflatten(structure, [wrong(x) if i == place else x for i, x in enumerate(arrays)])

    return lambda pair: replace(pair, flax_input=lambda *given: prepared(pair, given))


def operation(layer: str, wrong: Operation) -> Mistake:
    """Put another operation in the place of a layer's call: (module, its own call, inputs ...) -> output."""
    return lambda pair: replace(pair, operations={**pair.operations, layer: wrong})


def convolution(layer: str, wrong: Callable[[Callable[..., Array], Array, Array], Array]) -> Mistake:
    """Convolve in another way: `wrong` is given a 3x3 convolution (x, kernel, padding), x and the layer's kernel."""

    def convolve(x: Array, kernel: Array, padding: Any = ((1, 1), (1, 1))) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers, precision="highest")

    def run(module: nn.Module, call: Callable[..., Array], x: Array) -> Array:
        call(x)  # it makes the parameters known to the module
        parameters = module.variables["params"]
        return wrong(convolve, x, parameters["kernel"]) + parameters["bias"][None, None, None]

    return operation(layer, run)


def gradient_of(x: Array) -> Array:
    """Give zeros with the gradient of x: added to another function, they make its gradient wrong."""
    return x - lax.stop_gradient(x)


def loss(wrong: Callable[[Callable[..., Array], Array, Array, Array], Array]) -> Mistake:
    """Compute Flax's loss in another way: `wrong` is given the right one, the output, labels, and which are real."""
    return lambda pair: replace(pair, flax_loss=lambda *given: wrong(pair.flax_loss, *given))


def optimizer(wrong: Callable[..., optax.GradientTransformation]) -> Mistake:
    """Make Flax's optimizers in another way: `wrong` is given the right one and the options of PyTorch's."""
    made = lambda pair: {kind: (o, wrong(right, **o)) for kind, (o, right) in pair.optimizers.items()}  # noqa: E731
    return lambda pair: replace(pair, optimizers=made(pair))


def in_bfloat16(x: Array) -> Array:
    """Round to the precision of bfloat16."""
    return lax.reduce_precision(x, 8, 7)


def on_floats(wrong: Callable[[Array], Array], value: Any) -> Any:
    """Change all floating arrays of a value."""
    floating = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: wrong(x) if floating(x) else x, value)


def attribute(layer: str, name: str, wrong: Callable[[Any], Any]) -> Mistake:
    """Call a layer while an attribute of its module, which is a copy of the user's, is another."""

    def run(module: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        own = getattr(module, name)
        object.__setattr__(module, name, wrong(own))
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(module, name, own)

    return operation(layer, run)


def shifted(layer: str) -> Mistake:
    """Give a convolution its input shifted by a pixel."""
    return operation(layer, lambda module, call, x, *rest, **kwargs: call(jnp.roll(x, 1, 1), *rest, **kwargs))


def unbiased(layer: str) -> Mistake:
    """Leave out the bias, which a layer adds last."""
    bias = lambda module, x: variables_of(module)["params/bias"].astype(x.dtype)  # noqa: E731
    return operation(layer, lambda module, call, *args, **kwargs: on_floats(
        lambda x: x - bias(module, x), call(*args, **kwargs)))  # fmt: skip


def scaled(layer: str) -> Mistake:
    """Make a layer's output too large by a millionth."""
    wrong = lambda x: x * (1 + 1e-6)  # noqa: E731
    return operation(layer, lambda module, call, *args, **kwargs: on_floats(wrong, call(*args, **kwargs)))


def half_stopped(layer: str) -> Mistake:
    """Pass only half of the gradient through a layer's output."""
    wrong = lambda x: (x + lax.stop_gradient(x)) / 2  # noqa: E731
    return operation(layer, lambda module, call, *args, **kwargs: on_floats(wrong, call(*args, **kwargs)))


def rows(pair: Any) -> Any:
    """Move each row of the output to the place of the next."""
    roll = lambda x: jnp.roll(x, 1, 0) if getattr(x, "ndim", 0) else x  # noqa: E731

    def apply(*given: Any) -> Any:
        output, variables = pair.apply(*given)
        return jax.tree.map(roll, output), variables

    return replace(pair, apply=apply)


def faster(right: optax.GradientTransformation) -> optax.GradientTransformation:
    """Take steps that are 1 % longer."""
    return optax.chain(right, optax.scale(1.01))


def undecayed(right: optax.GradientTransformation) -> optax.GradientTransformation:
    """Take steps that do not depend on the parameters: without weight decay."""
    blind = lambda g, state, params: right.update(g, state, optax.tree.zeros_like(params))  # noqa: E731
    return optax.GradientTransformation(right.init, blind)


def forgetful(right: optax.GradientTransformation) -> optax.GradientTransformation:
    """Take each step as if it were the first: without momentum."""
    update = lambda g, state, params: (right.update(g, right.init(params), params)[0], state)  # noqa: E731
    return optax.GradientTransformation(right.init, update)
