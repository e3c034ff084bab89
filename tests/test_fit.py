import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn import checkpoints, fit, train
from jaxcnn.config import read_config, resumed
from jaxcnn.data import Split
from jaxcnn.errors import UserError
from jaxcnn.recipe import recipe_for
from jaxcnn.run_directory import RunDirectory
from jaxcnn.sharding import make_mesh
from tests.conftest import assert_trees_equal


def run_fit(config, dataset, out, **more):
    directory = RunDirectory(out)
    if not directory.config.exists():
        directory.create(config)
    said = []
    history = fit.fit(config, dataset, out, make_mesh(jax.devices(), 1, config.batch_size), say=said.append, **more)
    return history, said


def final_state(out, config):
    like = train.create_state(recipe_for(config), 0)
    return checkpoints.restore(checkpoints.saved(out / "checkpoints")[0], like)[0]


def without_time(history):
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in history]


def test_a_run_directory_holds_what_the_contract_says(config, dataset, tmp_path):
    history, said = run_fit(config, dataset, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == history
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6)]
    fields = {"epoch", "step", "train_loss", "test_loss", "test_accuracy", "seconds", "images_per_second"}
    assert all(fields <= line.keys() for line in lines)
    assert read_config(run.config) == config
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert len([line for line in said if line.startswith("epoch")]) == 2
    assert not list(run.path.rglob("*.tmp"))


def test_the_accuracy_is_exact_and_of_the_last_weights(config, dataset, tmp_path):
    history, _ = run_fit(config, dataset, tmp_path / "run")
    weights = jaxcnn.load(tmp_path / "run")
    predicted = weights.predict(dataset.test.images).argmax(axis=1)
    assert (predicted == dataset.test.labels).mean() == pytest.approx(history[-1]["test_accuracy"], abs=1e-7)
    assert weights.class_names == dataset.class_names
    assert_trees_equal(weights.variables, final_state(tmp_path / "run", config).variables)


def test_a_run_is_determined_by_its_configuration(config, dataset, tmp_path):
    one, _ = run_fit(config, dataset, tmp_path / "one")
    two, _ = run_fit(config, dataset, tmp_path / "two")
    other, _ = run_fit(dataclasses.replace(config, seed=1), dataset, tmp_path / "other")
    assert without_time(one) == without_time(two)
    assert without_time(one) != without_time(other)


def interrupt_after(ticks, monkeypatch, signum=signal.SIGTERM):
    """Send this process a signal while the given dispatch runs."""
    real, calls = fit.Trainer.steps, iter(range(1, 1000))

    def steps(*arguments):
        if next(calls) == ticks + 1:  # the first call compiles
            os.kill(os.getpid(), signum)
        return real(*arguments)

    monkeypatch.setattr(fit.Trainer, "steps", steps)


@pytest.mark.parametrize("ticks", [1, 2, 4])
def test_an_interrupted_run_goes_on_to_the_same_end(config, dataset, tmp_path, monkeypatch, ticks):
    whole, _ = run_fit(config, dataset, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(fit, "TICK_SECONDS", 0.0)  # one step to a dispatch
        interrupt_after(ticks, patch)
        with pytest.raises(fit.Interrupted) as stop:
            run_fit(config, dataset, tmp_path / "cut")
    assert stop.value.signum == signal.SIGTERM
    assert int(final_state(tmp_path / "cut", config).step) == ticks
    resumed, _ = run_fit(config, dataset, tmp_path / "cut")
    assert without_time(resumed) == without_time(whole)
    assert_trees_equal(final_state(tmp_path / "cut", config), final_state(tmp_path / "whole", config))


def test_more_epochs_go_on_from_the_end(config, dataset, tmp_path):
    longer = dataclasses.replace(config, epochs=3)
    whole, _ = run_fit(longer, dataset, tmp_path / "whole")
    run_fit(config, dataset, tmp_path / "more")
    history, _ = run_fit(longer, dataset, tmp_path / "more")
    assert without_time(history) == without_time(whole)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", 0, "not a whole number"),
        ("epochs", True, "not a whole number"),
        ("precision", "half", "not float32 or bfloat16"),
    ],
)
def test_a_configuration_that_nobody_can_train_by_is_refused(config, tmp_path, field, value, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**dataclasses.asdict(config), field: value}))
    with pytest.raises(UserError, match=f"{field} is {value!r}, {words}"):
        read_config(path)
    path.write_text(json.dumps({**dataclasses.asdict(config), "seed": 0}))
    assert read_config(path) == config


def test_the_seconds_of_an_epoch_are_its_own(config, dataset, tmp_path):
    """A run that goes on after an epoch's end finds that epoch's seconds in the checkpoint."""
    run_fit(config, dataset, tmp_path / "run")
    checkpoints.save(tmp_path / "run/checkpoints", final_state(tmp_path / "run", config), {"seconds": "1e6"})
    history, _ = run_fit(dataclasses.replace(config, epochs=3), dataset, tmp_path / "run")
    assert 0 < history[-1]["seconds"] < 1e5


def test_a_finished_run_is_left_alone(config, dataset, tmp_path):
    first, _ = run_fit(config, dataset, tmp_path / "run")
    before = RunDirectory(tmp_path / "run").weights.stat().st_mtime_ns
    again, _ = run_fit(config, dataset, tmp_path / "run")
    assert again == first
    assert RunDirectory(tmp_path / "run").weights.stat().st_mtime_ns == before


def test_an_initial_network_is_where_it_starts(config, dataset, tmp_path):
    variables = train.create_state(recipe_for(config), seed=7).variables
    still = dataclasses.replace(config, learning_rate=0.0, epochs=1)
    run_fit(still, dataset, tmp_path / "run", variables=jax.tree.map(np.asarray, variables))
    assert_trees_equal(jaxcnn.load(tmp_path / "run").variables, variables)


def test_what_may_not_change_is_refused_by_name(config):
    assert resumed(config, {"epochs": 9, "learning_rate": 0.5}).epochs == 9
    assert resumed(config, {"batch_size": config.batch_size}) == config
    for name, value in {"batch_size": 64, "dataset": "cifar10", "seed": 3, "precision": "bfloat16"}.items():
        with pytest.raises(UserError, match=name.replace("_", "-")):
            resumed(config, {name: value})


def test_a_directory_that_is_not_a_run_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        RunDirectory(tmp_path).create(config)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_checkpoints_of_another_run_are_not_gone_on_with(config, dataset, tmp_path):
    run_fit(config, dataset, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    for path in (tmp_path / "run").iterdir():
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match="not empty"):
        RunDirectory(tmp_path / "run").create(config)


def test_two_trainings_do_not_share_a_directory(tmp_path):
    with (
        RunDirectory(tmp_path / "run").locked(),
        pytest.raises(UserError, match="another training"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass


def test_other_images_are_refused(config, dataset, tmp_path):
    """A run goes on with the images that it began with, wherever they lie."""
    run_fit(dataclasses.replace(config, epochs=1), dataset, tmp_path / "run")
    labels = dataset.train.labels.copy()
    labels[-1] ^= 1
    fewer = Split("train", dataset.train.images[:-1], dataset.train.labels[:-1])
    for other in dataclasses.replace(dataset.train, labels=labels), fewer:
        with pytest.raises(UserError, match="not the training images that the run began with: mine; bring those back"):
            run_fit(
                dataclasses.replace(config, data_dir="mine"),
                dataclasses.replace(dataset, train=other),
                tmp_path / "run",
            )
    with pytest.raises(UserError, match="not the test images that the run began with"):
        run_fit(config, dataclasses.replace(dataset, test=fewer), tmp_path / "run")
