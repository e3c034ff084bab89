"""The second network through the same chain: small, in float64; `make soak` runs the command."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
import parity.__main__ as main
from jaxcnn import UserError, data
from jaxcnn.layers import global_max_pool
from jaxcnn.networks import describe, widths
from jaxcnn.optimizers import linear
from parity import parts
from parity.twins import controls, speedrun, speedrun_controls, training
from parity.twins.cases import drawn
from parity.twins.pairs import pair_of
from parity.twins.speedrun_training import Augmented, augmented
from tests.conftest import ROOT, assert_trees_equal
from tests.parity.twins.test_proof import PASSING

WIDTHS = 4, 6, 8


@pytest.fixture(scope="module")
def trial():
    return speedrun_controls.small_trial(data.load("digits"))


def first_failure(control, trial, *cases):
    with jax.enable_x64(True):
        chosen = dataclasses.replace(trial, cases=cases)
        return controls.catch(control, chosen, speedrun_controls.NETWORK)


@pytest.mark.soak
def test_without_a_mistake_all_agrees(trial):
    assert first_failure(controls.NONE, trial, *trial.cases) is None


def slow(control):
    """Tell if a control trains, for half a minute."""
    return control.first[0] == "evaluation" or control.first == ("trajectory", "conv1.weight", "")


@pytest.mark.parametrize(
    "control",
    [
        pytest.param(control, id=control.name, marks=[pytest.mark.soak] * slow(control))
        for control in speedrun_controls.CONTROLS
        if not control.first[1].endswith((".fixed", ".initial"))
    ],
)
def test_a_mistake_is_noticed_where_it_is(trial, control):
    """In its case alone, to be fast; the command tries it in all of them. What comes before has to agree."""
    link, _, case = control.first
    if link == "evaluation":
        trial = dataclasses.replace(trial, steps=2)  # an epoch, whose last batch is half full
    caught = first_failure(control, trial, *filter(None, ["training" if link == "step" else case]))
    assert (caught.link, caught.tensor, caught.case) == control.first


@pytest.mark.parametrize(
    "control",
    [control for control in speedrun_controls.CONTROLS if control.first[1].endswith((".fixed", ".initial"))],
    ids=lambda control: control.name,
)
def test_other_first_weights_are_noticed(control):
    with jax.enable_x64(True):
        pair = pair_of(speedrun_controls.NETWORK, "float64")
        right, wrong = (list(training.initial(one)) for one in (pair, control.mistake(pair)))
    assert all(check.passed for check in right)
    assert [check.tensor for check in wrong if not check.passed] == [control.first[1]]


def test_mistakes_have_names_of_their_own():
    names = [control.name for control in speedrun_controls.CONTROLS]
    assert len(names) == len(set(names)) > 20


@pytest.fixture
def pth(tmp_path):
    """What PyTorch itself writes of the twin."""
    model = speedrun.Speedrun(*WIDTHS)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) + 0.5)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_pytorchs_own_file_is_read_used_and_written_again_bit_for_bit(pth, tmp_path):
    weights = parity.load_weights(pth)
    assert describe(weights.network) == {
        "name": "speedrun", "width1": 4, "width2": 6, "width3": 8, "classes": 10
    }  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert np.allclose(weights.predict(images).sum(axis=1), 1)
    for name in ("again.pth", "torch.safetensors", "flax.safetensors"):
        naming = "torch" if name == "torch.safetensors" else None
        parity.save_weights(tmp_path / name, weights, naming, say=lambda _: None)
        again = parity.load_weights(tmp_path / name)
        assert_trees_equal(again.variables, weights.variables)
        assert widths(again.network) == WIDTHS
    before, after = (torch.load(path, weights_only=True) for path in (pth, tmp_path / "again.pth"))
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_file_without_running_statistics_is_refused(pth):
    state = torch.load(pth, weights_only=True)
    torch.save({name: t for name, t in state.items() if "running_var" not in name}, pth)
    with pytest.raises(UserError, match=r"norm1\.running_var: expected \[4\], got nothing"):
        parity.load_weights(pth)


def compared(monkeypatch, *arguments):
    """Give what the command compares: network, weights, number of steps."""
    given = []
    monkeypatch.setattr(parts, "run_parts", lambda *some: given.append(some) or PASSING)
    monkeypatch.setattr(main.platform, "start", lambda platform: None)  # JAX has started
    monkeypatch.setattr(sys, "argv", ["parity", *map(str, arguments)])
    assert main.main() == 0
    ((network, weights, _, steps),) = given
    return describe(network), weights, steps


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [((), (32, 512)), (("--recipe", "speedrun"), (32, 96, 128)), (("--recipe", "speedrun-large"), (48, 192, 320))],
)
def test_the_recipe_names_the_network(monkeypatch, arguments, sizes):
    network, weights, steps = compared(monkeypatch, *arguments)
    assert tuple(network.values())[1:-1] == sizes
    assert steps is None
    if network["name"] == "speedrun":
        assert weights["normalise.mean"].min() > 0.1
        assert np.abs(weights["whiten.weight"]).max() > 0.5


def test_weights_say_which_network_they_are_of(monkeypatch, pth):
    for arguments in ((), ("--recipe", "speedrun-large")):
        network, weights, _ = compared(monkeypatch, pth, *arguments)
        assert tuple(network.values())[1:-1] == WIDTHS
        assert weights.keys() == torch.load(pth, weights_only=True).keys()
    with pytest.raises(UserError, match="weights of speedrun, not of tutorial"):
        compared(monkeypatch, pth, "--recipe", "tutorial")


def test_images_are_moved_down_and_to_the_right_then_mirrored_then_resized():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[:, 3, 4] = 255
    given = Augmented(images, np.array([[1, -2], [1, -2]]), np.array([False, True]), 8)
    x = augmented(given, torch.float64)
    assert [tuple(one[0].nonzero()[0].tolist()) for one in x] == [(4, 2), (4, 5)]
    assert augmented(given._replace(size=5), torch.float64).shape == (2, 3, 5, 5)


def test_constants_are_those_of_the_images(trial):
    found = drawn(speedrun_controls.NETWORK, trial.data.train.images)
    x = trial.data.train.images / 255
    np.testing.assert_allclose(found["normalise.mean"], x.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(found["normalise.deviation"], x.std((0, 1, 2)), rtol=1e-7)


def test_the_gradient_of_global_pooling_goes_to_the_first_maximum():
    x = jnp.asarray([[[[1.0], [2.0]], [[2.0], [0.0]]]])
    np.testing.assert_array_equal(global_max_pool(x), [[2]])
    gradient = jax.grad(lambda x: global_max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 1], [0, 0]])


def test_the_rate_falls_to_0_in_the_precision_of_training():
    with jax.enable_x64(True):
        assert float(linear(0.17, 7)(jnp.int32(3))) == pytest.approx(0.17 * 4 / 7, rel=1e-15)
    assert [float(linear(0.5, 2)(jnp.int32(step))) for step in range(4)] == [0.5, 0.25, 0, 0]
    assert float(linear(0.5, 0)(jnp.int32(0))) == 0


@pytest.mark.soak
def test_the_proof():
    command = [sys.executable, "-m", "parity", "--recipe", "speedrun"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: the same network, trained the same way" in done.stdout
