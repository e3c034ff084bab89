"""What a training computes, against XLA's own account and against sums by hand."""

from math import prod

import jax
import jax.numpy as jnp
import pytest

from jaxcnn import layers
from jaxcnn.compute import forward_flop, layer_flop, training_pflop
from jaxcnn.config import LARGE, SPEEDRUN, TUTORIAL
from jaxcnn.features import layer_shapes
from jaxcnn.networks import initial_variables
from jaxcnn.recipe import recipe_for

SIZES = {19: 2, 23: 3, 27: 3, 32: 6}  # speedrun's epochs


def xla_flop(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def products_with_padding(network, size):
    """Of 3x3 convolutions with the zeros around the image: a side of n pixels has 3n - 2 of 3n taps within it."""
    shapes, counted = layer_shapes(network, size), layer_flop(network, size)
    within = {name: prod((3 * n - 2) / (3 * n) for n in shapes[name][:2]) for name in counted if "conv" in name}
    return sum(counted[name] * (1 - share) for name, share in within.items())


@pytest.mark.parametrize(("config", "size"), [(TUTORIAL, 32), (SPEEDRUN, 32), (SPEEDRUN, 19)])
def test_xla_counts_the_same(config, size):
    """But for the zeros of padding, which it leaves out, and for what is no product, which it has too.

    A GELU is 64 operations a value, of a polynomial; all else, as biases, means and maxima, is less than 1 % in all.
    """
    network = recipe_for(config).network
    variables = jax.eval_shape(lambda key: initial_variables(network, key), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    products = forward_flop(network, size) - products_with_padding(network, size)
    rest = xla_flop(network.apply, variables, image) - products
    values = sum(prod(shape) for name, shape in layer_shapes(network, size).items() if "act" in name)
    gelu = 0 if config is TUTORIAL else values * xla_flop(layers.gelu, jax.ShapeDtypeStruct((999,), jnp.float32)) / 999
    assert 0 < rest < 0.1 * products
    assert abs(rest - gelu) < 0.01 * products


def by_hand(size, width1, width2, width3):
    """Speedrun's products: the first layer takes a pixel from each side, each group halves it."""
    first = size - 1
    second, third = first // 2, first // 4
    last = third // 2
    whiten, head = first**2 * 2 * 2 * 3 * 24, width3 * 10
    group1 = 9 * (first**2 * 24 * width1 + second**2 * width1**2)
    group2 = 9 * (second**2 * width1 * width2 + third**2 * width2**2)
    group3 = 9 * (third**2 * width2 * width3 + 2 * last**2 * width3**2)
    return 2 * (whiten + group1 + group2 + group3 + head)


def test_a_training_is_the_sum_of_its_epochs():
    tutorial = 2 * (1024 * 9 * (3 * 32 + 32 * 32) + 16 * 16 * 32 * 512 + 512 * 10)
    assert training_pflop(recipe_for(TUTORIAL), 50_000, 20) == pytest.approx(20 * 50_000 * 3 * tutorial / 1e15)
    for config in (SPEEDRUN, LARGE):
        assert forward_flop(recipe_for(config).network) == by_hand(32, *config.widths)
    speedrun = sum(3 * 50_000 * epochs * by_hand(size, *SPEEDRUN.widths) for size, epochs in SIZES.items())
    assert training_pflop(recipe_for(SPEEDRUN), 50_000, 14) == pytest.approx(speedrun / 1e15)
    half = sum(3 * 50_000 * epochs * by_hand(size, *SPEEDRUN.widths) for size, epochs in {19: 2, 23: 3, 27: 2}.items())
    assert training_pflop(recipe_for(SPEEDRUN), 50_000, 7) == pytest.approx(half / 1e15)
