import numpy as np
import pytest
import torch

from jaxcnn import files
from parity.twins.tables import TABLES
from parity.twins.tutorial import CNN
from tests.parity.conftest import DTYPES, TutorialModel, small_weights

TABLE = TABLES["tutorial"]


def bits(arrays):
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_is_bit_identical_and_contiguous(dtype):
    flax = files.flat_names(small_weights(dtype).params)
    there = TABLE.carry(flax, "torch")
    assert bits(TABLE.carry(there, "flax")) == bits(flax)
    assert bits(TABLE.carry(TABLE.carry(there, "flax"), "torch")) == bits(there)
    assert all(array.flags.c_contiguous for array in there.values())


def test_names_order_and_shapes_are_pytorchs():
    state = {name: tuple(tensor.shape) for name, tensor in CNN(2, 3).state_dict().items()}
    carried = TABLE.carry(files.flat_names(small_weights().params), "torch")
    assert [(name, array.shape) for name, array in carried.items()] == list(state.items())
    shapes = {name: a.shape for name, a in files.flat_names(small_weights().params).items()}
    assert TABLE.carry_shapes(shapes, "torch") == state


def test_the_twin_is_the_tutorials_class():
    """Same entries, and the same logits and gradients, bit for bit."""
    tutorial, twin = TutorialModel(), CNN()
    twin.load_state_dict(tutorial.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    results = []
    for model in (tutorial, twin):
        torch.manual_seed(0)
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_element_goes_to_its_place():
    """Each formula by itself, over all indices: conv [o,i,h,w] is [h,w,i,o], and fc3's inputs change their order."""
    flax = files.flat_names(small_weights().params)
    there = TABLE.carry(flax, "torch")
    for o, i, h, w in np.ndindex(2, 3, 3, 3):
        assert there["conv1.weight"][o, i, h, w] == flax["conv1/kernel"][h, w, i, o]
    for o, c, h, w in np.ndindex(3, 2, 16, 16):
        assert there["fc3.weight"][o, c * 256 + h * 16 + w] == flax["fc3/kernel"][h * 32 + w * 2 + c, o]
    np.testing.assert_array_equal(there["fc4.weight"], flax["fc4/kernel"].T)
    np.testing.assert_array_equal(there["conv2.bias"], flax["conv2/bias"])


@pytest.mark.parametrize("name", ["conv1/kernel", "fc3/bias"])
def test_what_is_not_the_tables_is_refused(name):
    flax = files.flat_names(small_weights().params)
    with pytest.raises(KeyError):
        TABLE.carry({other: array for other, array in flax.items() if other != name}, "torch")
    with pytest.raises(ValueError, match=name):
        TABLE.carry({**flax, name: flax[name][None]}, "torch")


def test_variables_and_a_state_dict_are_carried_whole():
    weights = small_weights()
    state = TABLE.to_torch(weights.variables)
    assert bits(files.flat_names(TABLE.to_flax(state))) == bits(files.flat_names(weights.variables))
