import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import features
from jaxcnn.errors import UserError
from jaxcnn.layers import scale_pixels
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.networks.tutorial import CNN

NAMES = [
    "input", "conv1", "act1", "drop1", "conv2", "act2", "pool2", "flat", "fc3", "act3", "drop3", "fc4",
]  # fmt: skip


def drawn(model, dtype=np.float32):
    """Variables from NumPy: Flax compiles each draw by itself."""
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3))), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(dtype) / 8, shapes)


@pytest.fixture(scope="module")
def network():
    return CNN(4, 16), drawn(CNN(4, 16))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Conv(3, (3, 3), name="zeta")(x)


class Other(nn.Module):
    """A network that this package knows nothing of: nested, its names not in alphabetical order, one layer twice."""

    param_dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        twice = Block(name="twice")
        x = twice(twice(x))
        return nn.Dense(2, name="alpha")(x.mean(axis=(1, 2)))


def test_layers_are_listed_in_order_of_execution_with_their_shapes(network):
    shapes = features.layer_shapes(network[0])
    assert list(shapes) == NAMES
    assert list(shapes.values()) == [
        (32, 32, 3), (32, 32, 4), (32, 32, 4), (32, 32, 4), (32, 32, 4), (32, 32, 4), (16, 16, 4), (1024,),
        (16,), (16,), (16,), (10,),
    ]  # fmt: skip


def test_maps_are_those_of_the_forward_pass_in_the_order_asked_for(network, images):
    model, variables = network
    maps = features.feature_maps(model, variables, images, ["fc4", "act1", "input", "conv1", "drop1"])
    assert list(maps) == ["fc4", "act1", "input", "conv1", "drop1"]
    scaled = scale_pixels(jnp.asarray(images))
    np.testing.assert_array_equal(maps["input"], images.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(maps["fc4"], model.apply(variables, scaled), rtol=1e-4, atol=1e-6)
    kernel, bias = (
        np.asarray(variables["params"]["conv1"]["kernel"], float),
        np.asarray(variables["params"]["conv1"]["bias"]),
    )
    padded = np.pad(maps["input"], ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    expected = sum(padded[:, i : i + 32, j : j + 32] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(maps["conv1"], expected + bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(maps["act1"], np.maximum(maps["conv1"], 0))
    np.testing.assert_array_equal(maps["drop1"], maps["act1"])
    assert all(array.dtype == np.float32 for array in maps.values())


def test_any_linen_network_can_be_looked_into(images):
    model = Other()
    params = drawn(model)
    assert features.layer_shapes(model) == {
        "input": (32, 32, 3), "twice/zeta": (32, 32, 3), "twice": (32, 32, 3), "alpha": (2,)
    }  # fmt: skip
    maps = features.feature_maps(model, params, images, ["twice", "twice/zeta"])
    once = Block().apply({"params": params["params"]["twice"]}, scale_pixels(images))
    np.testing.assert_allclose(maps["twice"], once + maps["twice/zeta"], rtol=1e-5, atol=1e-6)


def test_layers_that_nobody_asks_for_are_not_computed(network, images):
    def compiled(*layers):
        return features._selected.lower(*network, images, layers).compile()

    def convolutions(program):
        return sum(" convolution(" in line or "onednn$convolution" in line for line in program.as_text().splitlines())

    first, all_ = compiled("conv1"), compiled("conv1", "fc4")
    assert convolutions(first) == 1
    assert convolutions(all_) == 2
    assert first.cost_analysis()["flops"] < 0.5 * all_.cost_analysis()["flops"]
    assert convolutions(compiled("input")) == 0


def test_a_data_set_is_gone_through_in_batches_of_one_program(network, images):
    whole = features.feature_maps(*network, images, ["fc3"])["fc3"]

    taken = []

    class Lazy:
        def __len__(self):
            return len(images)

        def __getitem__(self, part):
            taken.append(part)
            return images[part]

    programs = features._selected._cache_size()
    batches = features.batched(*network, Lazy(), ["fc3"], batch_size=2)
    first = next(batches)["fc3"]
    assert taken == [slice(0, 2)]
    rest = [batch["fc3"] for batch in batches]
    assert [len(first), *map(len, rest)] == [2, 2, 1]
    assert features._selected._cache_size() == programs + 1
    np.testing.assert_allclose(np.concatenate([first, *rest]), whole, rtol=1e-5, atol=1e-6)
    assert isinstance(first, np.ndarray)
    assert list(features.batched(*network, images[:0], ["fc3"])) == []


def test_bfloat16_comes_out_as_float32(images):
    model = CNN(4, 16, dtype=jnp.bfloat16)
    params = drawn(model)
    maps = features.feature_maps(model, params, images, ["conv1"])["conv1"]
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, maps.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(
    ("name", "todo"), [("cnov1", "did you mean conv1?"), ("fc5", "fc"), ("zzz", "there are input")]
)
def test_a_layer_that_there_is_not(network, images, name, todo):
    with pytest.raises(UserError, match=name) as problem:
        features.feature_maps(*network, images, ["conv1", name])
    assert todo in str(problem.value)


@pytest.mark.parametrize("wrong", [np.zeros((2, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8), [[1]]])
def test_images_that_are_not_a_batch_of_uint8(network, wrong):
    with pytest.raises(TypeError, match=r"[uU][iI]nt8"):
        features.feature_maps(*network, wrong, ["conv1"])


@pytest.mark.parametrize("shape", [(64, 64, 3), (32, 32, 1), (16, 64, 3)])
@pytest.mark.parametrize("model", [CNN(4, 16), Speedrun(2, 3, 4)])
def test_images_that_our_networks_are_not_made_for(model, shape):
    """Some of these would come through a network, with an answer that means nothing."""
    with pytest.raises(ValueError, match=r"this network takes \[n, 32, 32, 3\]"):
        features.feature_maps(model, {"params": {}}, np.zeros((2, *shape), np.uint8), ["input"])


def test_one_name_is_no_list_of_layers(network, images):
    with pytest.raises(TypeError, match=r"'conv1', which is one name; give a list: \['conv1'\]"):
        features.feature_maps(*network, images, "conv1")


@pytest.mark.parametrize("size", [0, -1, 3.5, "32", True])
def test_shapes_of_images_without_a_size(size):
    with pytest.raises(ValueError, match="size is"):
        features.layer_shapes(CNN(4, 16), size)


def test_shapes_that_a_network_does_not_have(network, images):
    with pytest.raises(ValueError, match=r"no images of 31 x 31 \(.*fc3.*\); give the size") as problem:
        features.layer_shapes(CNN(4, 16), 31)
    assert "\n" not in str(problem.value)
    with pytest.raises(TypeError, match=r"such as CNN\(\)"):
        features.layer_shapes(CNN)
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(features.batched(*network, images, ["input"], batch_size=0))


def test_as_maps():
    assert features.as_maps(np.zeros(7)).shape == (1, 1, 7)
    assert features.as_maps(np.zeros((2, 3, 7))).shape == (2, 3, 7)
