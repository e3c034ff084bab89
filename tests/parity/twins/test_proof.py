import dataclasses
import itertools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import parity.__main__ as main
from jaxcnn import data
from jaxcnn.config import DEFAULTS
from jaxcnn.networks import initial_variables
from jaxcnn.networks.tutorial import CNN
from jaxcnn.recipe import recipe_for
from parity import bounds, parts, report
from parity.bounds import Check
from parity.kinks import decisions, other_decisions
from parity.pair import torch_pass
from parity.twins import controls
from parity.twins.cases import HUGE, TINY, cases, torch_draws
from parity.twins.pairs import pair_of
from parity.twins.training import Trial, initial, trial_of
from tests.conftest import ROOT, users_environment

NAME = r"float(64|32)/(outputs|activations|gradients|step|trajectory|evaluation)/[\w.]+(@\w+)?"
TENSORS = {f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc3", "fc4") for kind in ("weight", "bias")}


def test_the_proof(tmp_path):
    """The command as a user gives it, with a trajectory that goes just beyond an epoch's partial last batch."""
    done = subprocess.run(
        [sys.executable, "-m", "parity", "--steps", "70", "--json", "p.json", "--figure", "p.png"],
        cwd=tmp_path, env=users_environment(), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["passed"] is True
    names = [check["name"] for check in found["checks"]]
    assert all(re.fullmatch(NAME, name) for name in names)
    assert len(names) == len(set(names)) > 500
    for precision in ("float64", "float32"):
        for link, tensors in {
            "activations": {"input", "conv1", "act1", "drop1", "conv2", "act2", "pool2", "flat", "fc3", "drop3", "fc4"},
            "outputs": {"logits", "loss"},
            "gradients": {*TENSORS, "input"},
            "step": {*TENSORS, *(f"{name}.momentum" for name in TENSORS), "loss"},
            "trajectory": {*TENSORS, *(f"{name}.momentum" for name in TENSORS), "loss"},
            "evaluation": {"logits", "loss", "predictions", "accuracy"},
        }.items():  # fmt: skip
            prefix = f"{precision}/{link}/"
            assert tensors <= {name.removeprefix(prefix).split("@")[0] for name in names if name.startswith(prefix)}
    for check in found["checks"]:
        assert check["passed"]
        assert check["error"] <= check["bound"]
    exact = [c for c in found["checks"] if re.match("float64/(outputs|gradients|step)", c["name"])]
    assert {c["bound"] for c in exact if "left_out" not in c["name"]} == {1e-12}
    assert [fault["name"] for fault in found["faults"]] == [
        "no mistake",
        *(control.name for control in controls.CONTROLS),
    ]
    assert all(fault["caught_by"] == fault["expected"] for fault in found["faults"])
    assert {"jax", "torch"} <= found["versions"].keys()
    assert (tmp_path / "p.png").stat().st_size > 30_000
    for words in ("conv2.weight.momentum", "TF32 off on both sides", "passed: the same network"):
        assert words in done.stdout


OF_ANY_PAIR = {"weights", "layers", "masks", "statistics", "initial"}  # links that our own network does not have


def test_there_are_enough_controls_and_none_is_named_twice():
    assert len({control.name for control in controls.CONTROLS}) == len(controls.CONTROLS) == 35
    assert {control.first[0] for control in controls.CONTROLS} == set(bounds.LINKS) - OF_ANY_PAIR


PASSING = {
    "device": "cpu",
    "checks": [Check("float64", "activations", "conv1", 1e-16, 1e-12, "random")],
    "faults": [{"name": "no fault", "caught_by": None, "expected": None, "passed": True}],
}  # fmt: skip
BROKEN = [
    Check("float64", "step", "fc4.bias", 1.0, 1e-12, "sgd", index=[0], ours=1.0, truth=2.0),
    Check("float64", "activations", "conv2", 0.5, 1e-12, "random", index=[0, 3, 4, 1], ours=0.25, truth=0.5),
]
MISSED = {"name": "sum for mean", "caught_by": None, "expected": "float64/outputs/loss@random", "passed": False}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"checks": PASSING["checks"] + BROKEN}, ["first divergence: float64/activations/conv2@random", "[0, 3, 4, 1]",
                                                  "JAX 0.25, PyTorch 0.5", "2 of 3"]),
        ({"faults": PASSING["faults"] + [MISSED]}, ["sum for mean", "expected float64/outputs/loss@random"]),
        ({"checks": [Check("float32", "outputs", "loss", float("inf"), 1.0, "huge")]}, ["error inf"]),
    ],
)  # fmt: skip
def test_a_divergence_or_a_control_that_is_not_caught_is_told_and_exits_1(monkeypatch, tmp_path, capsys, found, words):
    monkeypatch.setattr(parts, "run_parts", lambda *given: {**PASSING, **found})
    monkeypatch.setattr(sys, "argv", ["parity", "--json", str(tmp_path / "p.json")])
    assert main.main() == 1
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    assert json.loads((tmp_path / "p.json").read_text())["passed"] is False


def test_a_control_that_nothing_catches_does_not_pass(monkeypatch):
    monkeypatch.setattr(controls, "catch", lambda control, trial, network: None)
    first, *rest = controls.run(controls.small_trial(data.load("digits")))
    assert first["passed"]
    assert not any(one["passed"] for one in rest)


def test_a_mistake_leaves_the_pair_that_it_is_made_in():
    """Each control is a function from a pair to another, so that no mistake outlives its trial."""
    pair = pair_of(controls.NETWORK, "float64")
    for control in controls.CONTROLS:
        before = {name: getattr(pair, name) for name in pair.__dataclass_fields__}
        wrong = control.mistake(pair)
        assert all(getattr(pair, name) is value for name, value in before.items())
        assert any(getattr(wrong, name) is not value for name, value in before.items()), control.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.pth"], "no such file: absent.pth"),
        (["--figure", "x.gif"], "x.gif"),
        (["--step", "3"], "did you mean --steps?"),
    ],
)
def test_bad_usage_is_one_line(arguments, words):
    done = subprocess.run([sys.executable, "-m", "parity", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ") and words in line]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def inputs():
    weights = torch_draws(CNN(4, 12), 1)[0]
    return {case.name: case for case in cases(CNN(4, 12), weights, data.load("digits").train, 4)}


def torch_pass_of(case, dtype):
    return torch_pass(pair_of(CNN(4, 12), "float64"), case, dtype, {})


def test_planted_ties_are_ties_in_both_precisions_bit_for_bit(inputs):
    for name in ("zeros", "flat", "ties"):
        case = inputs[name]
        single, double = (torch_pass_of(case, dtype).activations for dtype in (torch.float32, torch.float64))
        for layer in double:
            np.testing.assert_array_equal(single[layer], double[layer])
    maps = double["act2"].reshape(4, 16, 2, 16, 2, 4).swapaxes(2, 3).reshape(4, 16, 16, 4, 4)
    tied = ((maps == maps.max(axis=3, keepdims=True)).sum(axis=3) > 1) & (maps.max(axis=3) > 0)
    assert tied.sum() > 20
    assert (double["conv1"] == 0).sum() > 100
    assert (double["fc3"][:, ::4] == 0).all()


def test_huge_and_tiny_stay_normal_and_saturated_logits_disagree_with_their_labels(inputs):
    for name, scale in (("huge", HUGE), ("tiny", TINY)):
        case = inputs[name]
        found = torch_pass_of(case, torch.float32)
        assert 0.01 < np.abs(found.outputs["logits"]).max() / scale < 100
        for array in [*found.activations.values(), *found.gradients.values()]:
            values = np.abs(array[array != 0])
            assert values.min() > np.finfo(np.float32).tiny
            assert values.max() < np.finfo(np.float32).max
        assert (found.outputs["logits"].argmax(axis=1) != case.labels).all()
        assert np.abs(found.gradients["fc4.bias"]).max() > 0.02


def test_images_where_a_decision_falls_otherwise_are_found(inputs):
    pair, found = pair_of(CNN(4, 12), "float64"), torch_pass_of(inputs["images"], torch.float64)
    assert not other_decisions(pair, found, found).any()
    for layer, place in {"act1": (1, 5, 5, 2), "act3": (1, 3)}.items():
        other = {**found.inputs, layer: found.inputs[layer].copy()}
        other[layer][place] *= -1
        assert (other_decisions(pair, found._replace(inputs=other), found) == [0, 1, 0, 0]).all()
    window = found._replace(inputs={**found.inputs, "pool2": found.inputs["pool2"].copy()})
    window.inputs["pool2"][2, 6, 7, 1] += 1e9
    assert decisions(pair, window)["pool2"][2, 3, 3, 1] == 6 * 32 + 7
    assert other_decisions(pair, window, found)[[0, 1, 3]].sum() == 0


def test_stretches_end_with_each_epoch_and_cover_all_steps(dataset):
    found = Trial({}, dataset).stretches()
    assert found[0] == (0, 4)
    assert found[-1] == (196, 200)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(found))
    assert {63, 126, 189} <= {end for _, end in found}


def test_initial_weights_have_pytorchs_distribution_and_nothing_in_common():
    """Many seeds, each layer's kernel and bias; Kolmogorov and Smirnov's test at one in a million.

    That Flax's own initial weights fail it is one of the controls.
    """
    found = list(initial(pair_of(CNN(4, 12), "float32"), draws=100))
    assert {check.tensor.removesuffix(".initial") for check in found} == TENSORS
    assert all(check.passed for check in found), [str(check) for check in found]
    draws = [initial_variables(CNN(4, 12), jax.random.key(seed))["params"] for seed in range(40)]
    biases = [np.concatenate([draw[name]["bias"][:4] for name in sorted(draw)]) for draw in draws]
    correlation = np.corrcoef(np.transpose(biases)) - np.eye(16)
    assert np.abs(correlation).max() < 0.65  # 4 standard deviations of 1/sqrt(40)


def test_other_distributions_are_told_from_pytorchs():
    pair = pair_of(CNN(4, 12), "float32")

    def scaled(network, key):
        return jax.tree.map(lambda leaf: 1.5 * leaf, initial_variables(network, key))

    assert not any(check.passed for check in initial(dataclasses.replace(pair, draw=scaled), draws=200))


def test_an_infinite_error_is_null_in_json():
    plain = report.plain(Check("float64", "outputs", "loss", float("inf"), 1.0))
    assert plain == {"name": "float64/outputs/loss", "error": None, "bound": 1.0, "passed": False}


def test_few_images_are_all_that_is_compared(dataset):
    few = dataclasses.replace(dataset, train=data.Split("train", dataset.train.images[:6], dataset.train.labels[:6]))
    found = [trial_of(CNN(4, 12), {}, some, 20) for some in (dataset, few)]
    assert [(trial.images, trial.subset, trial.steps) for trial in found] == [(8, 70, 20), (6, 6, 20)]


@pytest.mark.parametrize("name", ["tutorial", "speedrun"])
def test_images_of_the_proof_have_no_flat_parts(dataset, name):
    flat = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, images=np.full_like(dataset.train.images, 90))
    )
    network = recipe_for(DEFAULTS[name]["digits"]).network
    images = trial_of(network, {}, flat, None).data.train.images
    assert (np.diff(images.astype(int), axis=1) != 0).mean() > 0.9
