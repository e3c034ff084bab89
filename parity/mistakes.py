"""Classic mistakes of ports, each a function from a pair to the pair with the mistake made on Flax's side."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import optax
from jax import lax
from jaxtyping import Array

from parity.flax_trace import Operation

Mistake = Callable[[Any], Any]  # a pair of any kind to another of that kind


class Control(NamedTuple):
    """A mistake made on purpose, and the first comparison that has to fail."""

    name: str
    first: tuple[str, str, str] | None  # its link, tensor and case; None if none has to
    mistake: Mistake


def axes(flax: str, pattern: str) -> Mistake:
    """Carry an entry of the table, by its Flax name, as if its axes were others."""
    return lambda pair: replace(pair, table=pair.table.with_axes(flax, pattern))


def inputs(wrong: Callable[[Array], Array]) -> Mistake:
    """Prepare Flax's input in another way."""
    return lambda pair: replace(pair, flax_input=lambda *given: tuple(map(wrong, pair.flax_input(*given))))


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
