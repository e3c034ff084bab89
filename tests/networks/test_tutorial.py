import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import networks
from jaxcnn.layers import BatchKey, scale_pixels
from jaxcnn.networks.modules import Dropout
from jaxcnn.networks.tutorial import CNN, PARAMETERS

NAMES = ["conv1", "act1", "drop1", "conv2", "act2", "pool2", "flat", "fc3", "act3", "drop3", "fc4"]


@pytest.fixture(scope="module")
def network():
    net = CNN()
    return net, networks.initial_variables(net, jax.random.key(0))


def captured(net, variables, images, key=None):
    keep = lambda module, method: module.name in NAMES  # noqa: E731
    key = key if key is None else BatchKey.of_batch(key, len(images))
    logits, state = net.apply(variables, images, key, capture_intermediates=keep)
    return logits, {name: entry["__call__"][0] for name, entry in state["intermediates"].items()}


def test_parameters_are_the_tutorials(network):
    _, variables = network
    assert networks.parameter_count(variables) == PARAMETERS == 4_210_090
    shapes = {name: (p["kernel"].shape, p["bias"].shape) for name, p in variables["params"].items()}
    assert shapes == {
        "conv1": ((3, 3, 3, 32), (32,)),
        "conv2": ((3, 3, 32, 32), (32,)),
        "fc3": ((8192, 512), (512,)),
        "fc4": ((512, 10), (10,)),
    }


def test_every_named_layer_is_captured_with_its_shape(network):
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    logits, maps = captured(*network, images)
    assert list(maps) == NAMES
    assert [maps[name].shape[1:] for name in NAMES] == [
        (32, 32, 32), (32, 32, 32), (32, 32, 32), (32, 32, 32), (32, 32, 32), (16, 16, 32), (8192,),
        (512,), (512,), (512,), (10,),
    ]  # fmt: skip
    np.testing.assert_array_equal(maps["act1"], jnp.maximum(maps["conv1"], 0))
    np.testing.assert_array_equal(maps["flat"].reshape(2, 16, 16, 32), maps["pool2"])
    np.testing.assert_array_equal(maps["fc4"], logits)


def test_dropout_is_on_with_a_key_only_and_differs_by_key_and_layer(network):
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    _, off = captured(*network, images)
    np.testing.assert_array_equal(off["drop1"], off["act1"])
    np.testing.assert_array_equal(off["drop3"], off["act3"])
    _, on = captured(*network, images, jax.random.key(0))
    _, other = captured(*network, images, jax.random.key(1))
    for maps in (on, other):
        alive = np.asarray(maps["act1"] > 0)
        assert abs((np.asarray(maps["drop1"])[alive] == 0).mean() - 0.3) < 0.02
        alive = np.asarray(maps["act3"] > 0)
        assert abs((np.asarray(maps["drop3"])[alive] == 0).mean() - 0.5) < 0.1
    assert (np.asarray(on["drop1"]) != np.asarray(other["drop1"])).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_precision_is_of_the_computation_not_of_the_parameters(dtype):
    net = CNN(4, 8, dtype=dtype)
    variables = networks.initial_variables(net, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert net.apply(variables, jnp.ones((1, 32, 32, 3))).dtype == dtype


def test_a_foreign_files_shapes_tell_the_widths():
    net = CNN(4, 8, 7)
    assert CNN.from_shapes(lambda name, axes: networks.variable_shapes(net)[name]) == net


def test_scale_pixels():
    pixels = np.arange(256, dtype=np.uint8)
    found = jax.jit(scale_pixels)(jnp.asarray(pixels).reshape(4, 64))
    np.testing.assert_array_equal(found, (pixels.astype(np.float32) / np.float32(255)).reshape(4, 64))


class Twice(nn.Module):
    def setup(self):
        self.first, self.second = Inner(), Inner()
        self.others = [Dropout(0.5), Dropout(0.5)]

    def __call__(self, x, key):
        return [layer(x, key) for layer in (self.first, self.second, *self.others)]


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, key):
        return Dropout(0.5)(Dropout(0.5, name="own")(x, key), key)


def test_no_two_dropouts_of_a_network_have_the_same_mask():
    """In blocks, lists and compact modules too; alone it works as well."""
    key, x = BatchKey.of_batch(jax.random.key(0), 2), jnp.ones((2, 64))
    masks = [np.asarray(y).tobytes() for y in Twice().apply({}, x, key)]
    assert len(set(masks)) == 4
    assert 0 < (Dropout(0.5).apply({}, x, key) == 0).mean() < 1
