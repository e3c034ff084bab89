from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import networks
from jaxcnn.errors import UserError
from jaxcnn.explorer.graph import layers_of
from jaxcnn.networks.modules import Conv, Function
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.networks.tutorial import CNN


def ones(network):
    return networks.nested(
        {name: np.ones(shape, np.float32) for name, shape in networks.variable_shapes(network).items()}
    )


def test_the_tutorial_s_layers_follow_each_other():
    layers, factor = layers_of(CNN(4, 16), ones(CNN(4, 16)))
    before = ["input", *(layer.name for layer in layers)]
    assert [layer.inputs for layer in layers] == [(name,) for name in before[:-1]]
    kinds = "convolution relu same convolution relu maxPool flatten dense relu same dense"
    assert [layer.kind for layer in layers] == kinds.split()
    assert factor == pytest.approx(1)


def test_speedrun_s_residuals_are_sums_and_its_logits_a_share():
    """Of weights in half precision too."""
    network = Speedrun(4, 6, 8, param_dtype=jnp.float16)
    layers, factor = layers_of(network, ones(network))
    sums = {layer.name: set(layer.inputs) for layer in layers if len(layer.inputs) == 2}
    assert sums == {"act2": {"norm2", "act1"}, "act4": {"norm4", "act3"}, "act7": {"norm7", "act5"}}
    assert factor == pytest.approx(1 / 8)


class Strange(nn.Module):
    """Small networks that the page cannot show."""

    what: str
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if self.what == "kind":
            return nn.Dense(3)(x.mean(axis=(1, 2)))
        if self.what == "function":
            return Function(jnp.sin)(Conv(3)(x))
        y = Conv(3)(x)
        return Conv(3)(2 * y + x if self.what == "between" else y) ** (2 if self.what == "after" else 1)


@pytest.mark.parametrize(
    ("what", "words"),
    [("kind", "Dense_0 is of a kind"), ("function", "Function_0 is of a kind"), ("between", "what Conv_1 is given"),
     ("after", "the logits are not a multiple")],
)  # fmt: skip
def test_what_the_page_cannot_show_is_an_error(what, words):
    network = Strange(what)
    with pytest.raises(UserError, match=words):
        layers_of(network, ones(network))
