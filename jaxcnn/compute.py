"""How much a training computes, counted by formula, so that accuracies can be compared by their cost."""

from functools import cache
from math import prod

from jaxcnn.features import layer_shapes
from jaxcnn.networks import Network, variable_shapes
from jaxcnn.recipe import Recipe


def layer_flop(network: Network, size: int = 32) -> dict[str, int]:
    """Count the multiplications and additions of each convolution and dense layer for one image, in their order.

    A convolution's zero padding is counted as pixels.
    """
    shapes = {name.removeprefix("constants/"): shape for name, shape in variable_shapes(network).items()}
    kernels = {layer: (shapes[f"{layer}/kernel"], output) for layer, output in layer_shapes(network, size).items()
               if f"{layer}/kernel" in shapes}  # fmt: skip
    return {layer: 2 * prod(kernel) * prod(output[:-1]) for layer, (kernel, output) in kernels.items()}


@cache  # each epoch asks again, and tracing a network takes time
def forward_flop(network: Network, size: int = 32) -> int:
    """Count the multiplications and additions of one image's convolutions and dense layers: all others are few."""
    return sum(layer_flop(network, size).values())


def training_pflop(recipe: Recipe, images: int, epochs: int) -> float:
    """Count the PFLOP of a number of epochs: a step takes three times as much as a forward pass."""
    sizes = [recipe.size(epoch) or 32 for epoch in range(epochs)]
    return sum(3 * images * sizes.count(size) * forward_flop(recipe.network, size) for size in set(sizes)) / 1e15
