"""A network is found in whatever holds it, what is beside it is said, and what is another network is refused."""

import argparse
import collections
import copy
import enum
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

import jaxcnn
from jaxcnn import UserError, files
from jaxcnn.networks.speedrun import Speedrun
from parity.twins import speedrun, tables, tutorial
from tests.conftest import assert_trees_equal
from tests.parity.conftest import load, small_weights, state_dict


class Kind(enum.Enum):
    SMALL = 1


class Lightning(torch.nn.Module):
    """What people put around a network."""

    def __init__(self, network):
        super().__init__()
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(10))
        self.backbone = network
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("seen", torch.tensor(3))


def network(weights):
    model = tutorial.CNN(2, 3)
    model.load_state_dict(state_dict(weights))
    model.seen = torch.ones(2, 2)  # no parameter: not in its state_dict
    return model


def trained(weights):
    """A network, and an optimizer with a momentum for each of its parameters."""
    model = network(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    model.load_state_dict(state_dict(weights))
    return model, optimizer


def named(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


HOLDERS = {
    "state_dict": lambda w, s: {"state_dict": s, "epoch": 3},
    "model": lambda w, s: {"model": s, "optimizer": trained(w)[1].state_dict()},
    "checkpoint.model_state_dict": lambda w, s: {"checkpoint": {"model_state_dict": s}, "args": None},
    "MODEL_STATE": lambda w, s: {"MODEL_STATE": s, "EPOCHS_RUN": 9},
    "net_state_dict": lambda w, s: {"net_state_dict": s, "best_acc": np.float64(0.7)},
    "0": lambda w, s: (s, trained(w)[1].state_dict()),
    "1": lambda w, s: [np.int64(7), s],
    "module": lambda w, s: named("module.", s),
    "cnn": lambda w, s: named("cnn.", s),
    "module._orig_mod": lambda w, s: named("module._orig_mod.", s),
    "state_dict.model": lambda w, s: {"state_dict": named("model.", s), "hyper_parameters": argparse.Namespace(lr=1)},
    "backbone": lambda w, s: Lightning(network(w)).state_dict(),
    "whole": lambda w, s: {"whole": network(w), "epoch": 1},
    "trainer.backbone": lambda w, s: argparse.Namespace(trainer=Lightning(network(w)), kind=Kind.SMALL),
    "ema.module": lambda w, s: {"ema": torch.optim.swa_utils.AveragedModel(network(w))},
    "args.weights": lambda w, s: {"args": collections.defaultdict(dict, weights=s), "path": pathlib.Path("a")},
    "best": lambda w, s: {"best": s, "last": copy.deepcopy(s), "again": s},  # equal, so one
    "": lambda w, s: {**s, "optimizer": trained(w)[1].state_dict(), "mean": torch.ones(3), "n": torch.ones(()),
        "net.loss_fn.weight": torch.ones(10), "others": {"layer.weight": torch.ones(2, 2)}},
    ".": lambda w, s: network(w),
}  # fmt: skip


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", HOLDERS)
def test_whatever_holds_a_network_it_is_found_and_told(tmp_path, weights, name, is_zip):
    torch.save(HOLDERS[name](weights, state_dict(weights)), tmp_path / "w", _use_new_zipfile_serialization=is_zip)
    found, said = load(tmp_path / "w")
    assert_trees_equal(found.params, weights.params)
    assert len(said) == 1
    if name.strip("."):
        assert f"took what is in '{name}.'" in said[0]


def test_what_is_left_aside_is_told_tensors_first(tmp_path, weights):
    torch.save(HOLDERS["model"](weights, state_dict(weights)) | {"epoch": 3}, tmp_path / "w.tar")
    assert load(tmp_path / "w.tar")[1][0].endswith("w.tar: took what is in 'model.', left aside optimizer, epoch")
    torch.save(HOLDERS["backbone"](weights, None), tmp_path / "w.ckpt")
    assert load(tmp_path / "w.ckpt")[1][0].endswith("left aside mean, seen, criterion")


def test_wrappers_inside_names_are_no_part_of_them(tmp_path, weights):
    state = state_dict(weights)
    torch.save({name.replace(".", ".module._orig_mod."): state[name] for name in state}, tmp_path / "w.pth")
    found, said = load(tmp_path / "w.pth")
    assert_trees_equal(found.params, weights.params)
    assert said == []


def test_several_are_listed_and_asked_for(tmp_path, weights):
    other = small_weights(seed=1)
    torch.save({"model": state_dict(weights), "ema": {"net": state_dict(other)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"several networks fit: model, ema\.net.*--entry NAME"):
        load(tmp_path / "w.pth")
    for entry, expected in (("model", weights), ("ema", other), ("ema.net", other)):
        assert_trees_equal(load(tmp_path / "w.pth", entry=entry)[0].params, expected.params)
    with pytest.raises(UserError, match=r"no entry 'emma'.*there are model, ema"):
        load(tmp_path / "w.pth", entry="emma")
    for beside in ({"ema": state_dict(other)}, named("ema.", state_dict(other))):
        torch.save({**state_dict(weights), **beside}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="several networks fit: '', ema"):
            load(tmp_path / "w.pth")
    assert_trees_equal(load(tmp_path / "w.pth", entry="")[0].params, weights.params)


def sequential(*more):
    conv, linear = torch.nn.Conv2d, torch.nn.Linear
    first = [conv(3, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Dropout(), conv(2, 2, 3, padding=1)]
    return torch.nn.Sequential(*first, torch.nn.Flatten(), linear(512, 3), torch.nn.ReLU(), linear(3, 10), *more)


def renamed(model, weights):
    model.load_state_dict(dict(zip(model.state_dict(), state_dict(weights).values(), strict=True)))
    return model


OTHERS = {
    "0.weight": lambda w: renamed(sequential(), w).state_dict(),
    "features.0.weight": lambda w: {"net": named("features.", renamed(sequential(), w).state_dict()), "epoch": 1},
    "3.weight": lambda w: renamed(sequential(), w),
    "fc1.bias": lambda w: {n.replace("fc3", "fc1").replace("fc4", "fc2"): t for n, t in state_dict(w).items()},
    "0.bias": lambda w: dict(sorted(renamed(sequential(), w).state_dict().items())),  # biases first
    "W1": lambda w: dict(zip(("W1", "b1", "W2", "b2", "W3", "b3", "W4", "b4"), state_dict(w).values(), strict=True)),
    "7": lambda w: [*state_dict(w).values()],
    "optimizer": lambda w: (renamed(sequential(), w).state_dict(), trained(w)[1].state_dict()),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_matched_by_order(tmp_path, weights, name):
    torch.save(OTHERS[name](weights), tmp_path / "w.pth")
    found, said = load(tmp_path / "w.pth")
    assert_trees_equal(found.params, weights.params)
    assert "matched by shape and order" in said[-1]


def test_flaxs_own_names_are_matched_by_order(tmp_path, weights):
    params = files.flat_names(weights.params)
    params = {n.replace("conv1", "Conv_0").replace("conv2", "Conv_1"): np.asarray(a) for n, a in params.items()}
    params = {n.replace("fc3", "Dense_0").replace("fc4", "Dense_1"): array for n, array in params.items()}
    (tmp_path / "w").write_bytes(pickle.dumps({"params": jaxcnn.networks.nested(params)["params"]}))
    found, said = load(tmp_path / "w")
    assert_trees_equal(found.params, weights.params)
    assert "Conv_0.kernel is conv1/kernel" in said[-1]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (sequential(torch.nn.Linear(10, 10)), "conv1.weight: expected 4 axes, got nothing among 0.weight, 0.bias"),
        (sequential(torch.nn.BatchNorm1d(10)), "conv1.weight: expected 4 axes"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2), *sequential()[3:]), "expected 4 axes, got [2, 2] (0.weight"),
    ],
)
def test_other_names_that_do_not_fit_name_the_nearest(tmp_path, model, words):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError) as raised:
        load(tmp_path / "w.pth")
    assert words in str(raised.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_in_a_plain_pickle(tmp_path, weights, protocol):
    params = jaxcnn.networks.nested(files.flat_names(weights.params))
    arrays = {name: tensor.numpy() for name, tensor in state_dict(weights).items()}
    for content in (arrays, {"params": params["params"], "opt_state": (params,), "step": 3}, weights.variables):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
        assert_trees_equal(load(tmp_path / "w.pkl")[0].params, weights.params)


def test_mixed_types_are_taken_as_the_widest_and_told(tmp_path, weights):
    state = state_dict(weights)
    state["fc3.bias"] = state["fc3.bias"].half()
    torch.save(state, tmp_path / "w.pth")
    found, said = load(tmp_path / "w.pth", dtype=None)
    np.testing.assert_array_equal(found.params["fc3"]["bias"], state["fc3.bias"].float().numpy())
    assert said[0].endswith("float16 and float32 are mixed in it: taken as float32")
    torch.save(
        {name: tensor.half() if "fc" in name else tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "w"
    )
    assert load(tmp_path / "w", dtype=None)[0].dtype == "float32"


def test_the_second_network_by_its_names_and_in_a_whole_model(tmp_path):
    model = speedrun.Speedrun(4, 6, 8)
    torch.save({"net": model, "epoch": 3}, tmp_path / "w.pth")
    found, _ = load(tmp_path / "w.pth")
    assert isinstance(found.network, Speedrun)
    arrays = tables.table_of(found.network).to_torch(found.variables)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    swapped = {f"x.{name}".replace("running_var", "variance"): t for name, t in model.state_dict().items()}
    torch.save(swapped, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"norm1.running_var: expected"):  # which of equal shapes it is, nobody can tell
        load(tmp_path / "w.pth")


def other(**changes):
    """The state_dict, some entries changed or (None) left out."""

    def change(state):
        changed = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
        return {name: value for name, value in changed.items() if value is not None}

    return change


NAN = torch.full((3,), torch.nan)
MASKED = {"fc3__weight": None, "fc3__weight_orig": torch.zeros(3, 512), "fc3__weight_mask": torch.ones(3, 512)}
WRONG = {
    "missing": (other(fc3__bias=None), "fc3.bias: expected [3], got nothing"),
    "first missing": (other(conv1__weight=None), "conv1.weight: expected 4 axes, got nothing"),
    "extra": (other(fc5__weight=torch.zeros(2)), "fc5.weight: expected no such entry, got [2]"),
    "a layer more": (other(conv3__weight=torch.zeros(2, 2, 3, 3)), "conv3.weight: expected no such entry"),
    "batch norm": (other(bn__running_mean=torch.zeros(2)), "bn.running_mean: expected no such entry"),
    "PReLU": (other(act1__weight=torch.zeros(1)), "act1.weight: expected no such entry, got [1]"),
    "misshapen": (other(fc3__weight=torch.zeros(3, 2, 16, 16)), "fc3.weight: expected [3, 512], got [3, 2, 16, 16]"),
    "NHWC": (other(conv1__weight=torch.zeros(3, 3, 3, 2)), "conv1.weight: expected [3, 3, 3, 3], got [3, 3, 3, 2]"),
    "no outputs": (other(fc4__weight=torch.zeros(0, 3)), "fc4.weight: expected 2 axes, got [0, 3]"),
    "scalar": (other(fc4__bias=torch.tensor(1.0)), "fc4.bias: expected [10], got []"),
    "NaN": (other(fc3__bias=NAN), "fc3.bias: expected finite numbers, got NaN or infinity"),
    "infinity": (other(fc3__bias=-1 / torch.zeros(3)), "fc3.bias: expected finite numbers"),
    "integers": (other(fc3__bias=torch.zeros(3, dtype=torch.int64)), "or bfloat16, got int64"),
    "complex": (other(fc3__bias=torch.zeros(3, dtype=torch.complex64)), "or bfloat16, got complex64"),
    "float8": (other(fc3__bias=torch.zeros(3).to(torch.float8_e5m2)), "got a tensor of float8_e5m2"),
    "sparse": (other(fc3__bias=torch.zeros(3).to_sparse()), "or bfloat16, got a sparse tensor"),
    "meta": (other(fc3__bias=torch.zeros(3, device="meta")), "or bfloat16, got a tensor without numbers"),
    "a number": (other(fc3__bias=3.0), "fc3.bias: expected a tensor of float32 or float64 or float16 or bfloat16, got"),
    "twice": (other(module__fc3__bias=NAN), "module.fc3.bias: expected no such entry"),
    "another model": (lambda _: torch.nn.Linear(2, 2).state_dict(), "conv1.weight: expected 4 axes"),
    "empty": (lambda _: {}, "no tensors in it, only a dict"),
    "itself": (lambda _: (d := {}, d.update(model=d))[0], "no tensors in it, only a dict"),
    "pruned": (other(**MASKED), "fc3.weight_orig: a pruned network"),
    "weight norm": (other(fc3__weight=None, fc3__weight_g=NAN, fc3__weight_v=NAN), "weight_g: a weight-normed network"),
    "parametrized": (other(fc3__weight=None, fc3__parametrizations__weight__original0=NAN), "remove_parametrizations"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_what_does_not_fit_is_one_line_naming_the_entry(tmp_path, weights, fault):
    change, words = WRONG[fault]
    torch.save(change(state_dict(weights)), tmp_path / "w.pth")
    with pytest.raises(UserError) as raised:
        load(tmp_path / "w.pth")
    assert words in str(raised.value)
    assert "w.pth" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_or_quantised_model_is_named(tmp_path, weights):
    model = network(weights)
    prune.l1_unstructured(model.fc3, "weight", 0.5)
    quantised = torch.ao.quantization.quantize_dynamic(network(weights), {torch.nn.Linear})
    for content, words in (
        (model, "a pruned network.*prune.remove"), (model.state_dict(), "pruned"),
        (quantised, "quantised"), (quantised.state_dict(), "quantised"),
    ):  # fmt: skip
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=words):
            load(tmp_path / "w.pth")
