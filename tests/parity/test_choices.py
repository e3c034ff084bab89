"""What looks like a network and is none, and several that are: never the wrong one without a word."""

import json

import pytest
import safetensors.torch
import torch

import parity
from jaxcnn import UserError
from parity.twins import tutorial
from tests.conftest import assert_trees_equal
from tests.parity.conftest import load, small_weights, state_dict


@pytest.fixture
def two():
    """The state of two networks."""
    first = state_dict(small_weights())
    return first, {name: 2 * tensor for name, tensor in first.items()}


def sequential(state):
    """The same network under the names of another author."""
    names = {"conv1": "0", "conv2": "3", "fc3": "7", "fc4": "10"}
    return {f"{names[layer]}.{part}": t for key, t in state.items() for layer, part in [key.split(".")]}


def refused(content, path):
    torch.save(content, path)
    with pytest.raises(UserError) as raised:
        load(path)
    return str(raised.value)


@pytest.mark.parametrize("kind", ["Adagrad", "Adadelta", "Adamax", "ASGD", "Adam"])
def test_an_optimizer_is_no_network(two, tmp_path, kind):
    model = tutorial.CNN(2, 3)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    model(torch.ones(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert "an optimizer's state, and no network" in refused(optimizer.state_dict(), tmp_path / "w.pth")
    torch.save({"solver": optimizer.state_dict(), "net": sequential(two[0])}, tmp_path / "w.pth")
    assert_trees_equal(load(tmp_path / "w.pth")[0].params, small_weights().params)


@pytest.mark.parametrize("name", ["optimal_model", "optimized_state_dict", "opt_model", "optimal"])
def test_a_name_that_begins_like_an_optimizer_s(two, tmp_path, name):
    assert "several networks fit" in refused({name: two[0], "last": two[1]}, tmp_path / "w.pth")


def test_one_of_several_is_never_chosen_for_its_names(two, tmp_path):
    first, second = two
    path = tmp_path / "w.pth"
    for content in (
        {"net": sequential(first), "ema": second},
        {"state_dict": {**{f"module.{name}": t for name, t in first.items()}, **second}},
        {"state_dict": {**second, **{f"module.{name}": t for name, t in first.items()}}},
    ):
        assert "several networks fit" in refused(content, path)
    assert "two entries called a.b.conv1.weight" in refused({"a.b": first, "a": {"b": second}}, path)
    assert "more than 32 networks" in refused(
        {f"n{i}": {k: v.clone() for k, v in first.items()} for i in range(40)}, path
    )


def test_pruned_weights_without_their_masks(two, tmp_path):
    for names in (two[0], sequential(two[0])):
        assert "a pruned network" in refused({f"{name}_orig": t for name, t in names.items()}, tmp_path / "w.pth")


def test_other_names_in_the_order_of_safetensors(two, tmp_path):
    """Which has 10 before 3."""
    safetensors.torch.save_file(sequential(two[0]), tmp_path / "w.safetensors")
    assert_trees_equal(parity.load_weights(tmp_path / "w.safetensors").params, small_weights().params)


def test_of_two_shards_the_one_that_the_index_says(two, tmp_path):
    names = list(two[0])
    places = {name: f"{1 + (i > 3)}.safetensors" for i, name in enumerate(names)}
    for shard in ("1.safetensors", "2.safetensors"):
        tensors = {name: two[places[name] != shard][name].clone() for name in names}
        safetensors.torch.save_file(tensors, tmp_path / shard)
    (tmp_path / "w.index.json").write_text(json.dumps({"weight_map": places}))
    assert_trees_equal(parity.load_weights(tmp_path / "w.index.json").params, small_weights().params)
