"""A trained network to use: what it predicts, how it prints, when it is another's equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import networks
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.networks.tutorial import CNN
from jaxcnn.train import predict_logits
from jaxcnn.weights import Weights, save_weights
from tests.test_features import drawn


@pytest.fixture(scope="module")
def weights():
    return Weights(CNN(4, 16), drawn(CNN(4, 16)), tuple("abcdefghij"), "digits")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_floats_predict_what_bytes_do_bit_for_bit(weights, images):
    expected = np.asarray(jax.nn.softmax(predict_logits(weights.network, weights.variables, jnp.asarray(images))))
    for given, largest in ((images, 1), (images / 255, 1), (images.astype(np.float32), 255), (list(images), 1)):
        np.testing.assert_array_equal(weights.predict(given, largest), expected)
    assert np.ptp(expected) > 0


def test_loaded_arrays_lie_where_jax_takes_them_without_a_copy(weights, tmp_path):
    save_weights(tmp_path / "w.safetensors", weights)
    loaded = jaxcnn.load(tmp_path / "w.safetensors")
    assert loaded == weights
    for array in jax.tree.leaves(loaded.variables):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous


def test_predictions_are_float32_rows_of_one_image_or_of_none(weights, images):
    narrow = CNN(4, 16, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    for some in (weights, Weights(narrow, drawn(narrow, jnp.bfloat16))):
        for given, shape in ((images[0], (1, 10)), ([], (0, 10)), (images[:0], (0, 10)), (images, (3, 10))):
            found = some.predict(given)
            assert (found.shape, found.dtype) == (shape, np.float32)
    with pytest.raises(ValueError, match="channels first"):
        weights.predict(images.transpose(0, 3, 1, 2))


def test_weights_print_in_a_line(weights):
    assert repr(weights) == (
        "Weights(CNN(channels=4, hidden=16, classes=10), 16,830 parameters, classes: a, b, c, d, e, f, g, h, i, j; "
        "data set: digits)"
    )
    other = Weights(Speedrun(2, 3, 4, 99), networks.initial_variables(Speedrun(2, 3, 4, 99), jax.random.key(0)))
    assert "Speedrun(width1=2, width2=3, width3=4, classes=99)" in repr(other)
    assert "classes: unknown; data set: None" in repr(other)
    many = dataclasses.replace(other, class_names=tuple(f"class\n{i}" for i in range(99)))
    assert len(repr(many)) < 300
    assert "\n" not in repr(many)


def test_weights_are_equal_if_all_of_them_is(weights, tmp_path):
    save_weights(tmp_path / "w.safetensors", weights)
    loaded = jaxcnn.load(tmp_path / "w.safetensors")
    assert loaded == weights
    bias = {"bias": np.ones(4, np.float32)}
    params = {**weights.params, "conv1": {**weights.params["conv1"], **bias}}
    for change in (
        {"variables": {"params": params}}, {"variables": {"params": {"conv1": params["conv1"]}}}, {"class_names": ()},
        {"dataset": "cifar10"}, {"network": CNN(5, 16)},
    ):  # fmt: skip
        assert dataclasses.replace(weights, **change) != weights
    assert weights != "weights"
