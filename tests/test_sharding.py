import dataclasses
import functools
import re
import runpy
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from jaxcnn import data, fit, platform, processes, sharding, train
from jaxcnn.config import DEFAULTS, Config
from jaxcnn.errors import UserError
from jaxcnn.networks.tutorial import PARAMETERS
from jaxcnn.recipe import recipe_for
from jaxcnn.sharding import make_mesh
from tests.conftest import ROOT
from tests.peer import trajectories
from tests.scaling import collectives, compiled


@functools.cache
def on_one_device():
    return trajectories(make_mesh(jax.devices(), 1, 32))


def assert_same_trajectories(found, expected):
    for dtype, bound in {"float64": 1e-12, "float32": 1e-5}.items():
        (loss, params), (loss_before, params_before) = (np.split(x[dtype], [1], axis=1) for x in (found, expected))
        np.testing.assert_allclose(loss, loss_before, rtol=bound)
        np.testing.assert_allclose(params, params_before, rtol=0, atol=bound)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_takes_the_same_steps(devices):
    assert_same_trajectories(trajectories(make_mesh(jax.devices(), devices, 32)), on_one_device())


@pytest.mark.parametrize(("rate", "bound"), [(0.001, 1e-6), (0.01, 1e-2)])
def test_an_epoch_of_digits_in_float32_is_as_near_as_documented(rate, bound):
    """At the larger rate one ReLU that rounds to the other side makes all the difference."""
    found, digits = [], data.load("digits")
    config = dataclasses.replace(DEFAULTS["tutorial"]["digits"], learning_rate=rate, widths=(8, 64))
    for devices in (1, 4):
        trainer = fit.Trainer(config, digits, make_mesh(jax.devices(), devices, config.batch_size))
        state = sharding.replicate(train.create_state(trainer.recipe, 0), trainer.mesh)
        found.append(jax.tree.leaves(trainer.steps(state, trainer.per_epoch).params))
    for one, several in zip(*found, strict=True):
        np.testing.assert_allclose(several, one, rtol=0, atol=bound)


def test_the_trajectory_is_one_of_training():
    """So that equality is not that of standing still: every step moves, and dropout is on."""
    steps = np.abs(np.diff(on_one_device()["float64"][:, 1:], axis=0)).max(axis=1)
    assert (steps > 1e-4).all()


@pytest.mark.parametrize(
    "devices", [pytest.param(n, marks=[pytest.mark.soak] * (n not in (2, 8))) for n in (1, 2, 4, 8)]
)
def test_what_is_communicated_is_the_gradient_and_nothing_else(devices):
    """No gather of images or activations; and the documentation says how much it is."""
    rows = re.findall(r"^\| (\d) \| .*? \| ([\d,]+) \|", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE)
    documented = {int(devices): int(size.replace(",", "")) for devices, size in rows}
    found = collectives(compiled(Config(), devices).as_text())
    assert {kind for kind, _ in found} == ({"all-reduce"} if devices > 1 else set())
    assert sum(size for _, size in found) == documented[devices]
    assert len(found) == (3 if devices > 1 else 0)  # none of them inside a loop over chunks
    assert devices == 1 or 0 <= documented[devices] - 4 * PARAMETERS <= 64


def test_all_test_images_are_classified_by_any_number_of_devices(dataset):
    recipe = recipe_for(Config(widths=(2, 4)))
    network, state = recipe.network, train.create_state(recipe, 0)
    for devices in (1, 8):
        mesh = make_mesh(jax.devices(), devices, 32)
        images = sharding.replicate(dataset.test.images, mesh)
        variables = sharding.replicate(state.variables, mesh)
        logits = train.predict_logits(network, variables, images, batch_size=12, sharding=sharding.divided(mesh))
        expected = train.predict_logits(network, state.variables, dataset.test.images)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_a_mesh_over_all_devices_or_the_first(config, dataset):
    assert make_mesh(jax.devices(), None, 32).size == 8
    assert list(make_mesh(jax.devices(), 3, 33).devices) == jax.devices()[:3]
    trainer = fit.Trainer(config, dataset, make_mesh(jax.devices(), None, 32))
    assert trainer.data.images.sharding.is_fully_replicated
    assert trainer.data.images.dtype == np.uint8
    assert len(trainer.data.images.sharding.device_set) == 8


@pytest.mark.parametrize(
    ("count", "batch_size", "words"),
    [(3, 32, "take 30 or 33"), (8, 4, "take 8"), (9, 32, "9 devices asked for, 8 there"), (5, 5, None)],
)
def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(count, batch_size, words):
    if words is None:
        assert make_mesh(jax.devices(), count, batch_size).size == count
        return
    with pytest.raises(UserError, match=words):
        make_mesh(jax.devices(), count, batch_size)


@pytest.mark.parametrize(
    ("cores", "batch_size", "kind", "expected"),
    [(2, 1000, "cpu", 2), (2, 32, "cpu", 1), (8, 1000, "cpu", 4), (8, 750, "cpu", 3), (8, 1001, "cpu", 1),
     (None, 999, "cpu", 1), (2, 1000, "cuda", 1)],
)  # fmt: skip
def test_large_batches_are_divided_among_the_cores_of_a_cpu(monkeypatch, cores, batch_size, kind, expected):
    device = Mock(spec=jax.Device, platform=kind)
    monkeypatch.setattr(platform.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(platform, "start", lambda name, count: [device] * (count if kind == "cpu" else 8))
    assert len(platform.start_for(batch_size)) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--devices 0", "--devices"),
        ("--devices some", "--devices"),
        ("--coordinator here:99", "--num-processes and --process-id"),
        ("--num-processes 2", "--coordinator and --process-id"),
        ("--process-id 0", "--coordinator and --num-processes"),
        ("--coordinator auto --process-id 0", "leave --process-id out"),
        ("--coordinator here:99 --num-processes 2 --process-id 2", "take 0 to 1"),
        ("--coordinator here:99 --num-processes 2 --process-id -1", "--process-id"),
        ("--coordinator here:99 --num-processes 0 --process-id 0", "--num-processes"),
        ("--coordinator here --num-processes 2 --process-id 0", "not HOST:PORT"),
        ("--coordinator here:65536 --num-processes 2 --process-id 0", "not HOST:PORT"),
        ("--coordinator :99 --num-processes 2 --process-id 0", "not HOST:PORT"),
        ("--coordinator http://here:99 --num-processes 2 --process-id 0", "not HOST:PORT"),
    ],
)
def test_flags_that_contradict_are_one_line_before_anything_starts(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", *arguments.split()])
    monkeypatch.setattr(processes, "_connect", lambda *_: pytest.fail("started"))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/train.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
