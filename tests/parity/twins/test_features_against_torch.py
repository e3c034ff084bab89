import jax
import numpy as np
import pytest

from jaxcnn import Weights, features
from jaxcnn.networks.tutorial import CNN
from parity.twins.cases import feature_maps
from tests.test_features import drawn


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_every_layers_maps_are_pytorchs(dtype, bound):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with jax.enable_x64(dtype == "float64"):
        network = CNN(4, 16, dtype=dtype, param_dtype=dtype)
        weights = Weights(network, drawn(CNN(4, 16), dtype))
        layers = list(features.layer_shapes(network))
        ours = features.feature_maps(network, weights.variables, images, layers)
        theirs = feature_maps(weights, images, layers)
        assert list(ours) == list(theirs) == layers
        assert len(layers) == 12
        np.testing.assert_array_equal(ours["input"], theirs["input"])
        for layer in layers:
            assert ours[layer].dtype == theirs[layer].dtype == dtype
            assert ours[layer].shape == theirs[layer].shape
            scale = np.abs(theirs[layer]).max()
            assert scale > 0
            assert np.abs(np.asarray(ours[layer]) - theirs[layer]).max() <= bound * scale, layer
