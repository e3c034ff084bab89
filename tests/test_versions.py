"""A run directory of an earlier version goes on: `fixtures/run-0.1` was stopped by version 0.1 in its second epoch."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxcnn
import parity
from jaxcnn import data, files, fit, networks
from jaxcnn.config import read_config
from jaxcnn.errors import UserError
from jaxcnn.run_directory import RunDirectory
from jaxcnn.sharding import make_mesh
from parity.files import table_of
from tests.conftest import ROOT, assert_trees_equal
from tests.test_fit import without_time

FIXTURES = ROOT / "tests/fixtures"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(FIXTURES / "run-0.1", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_it_resumes_to_the_end_that_its_own_version_reached(run):
    config = read_config(run.config)
    assert config.recipe == "tutorial"
    history = fit.fit(config, data.load("digits"), run.path, make_mesh(jax.devices(), 1, config.batch_size))
    expected = without_time(files.read_json_lines(FIXTURES / "run-0.1-metrics.jsonl"))
    for line, before in zip(without_time(history), expected, strict=True):
        assert {name: line[name] for name in before} == pytest.approx(before, rel=1e-4)


def test_it_evaluates_and_converts(run, tmp_path):
    weights = jaxcnn.load(run.path)
    digits = data.load("digits")
    accuracy = (weights.predict(digits.test.images).argmax(axis=1) == digits.test.labels).mean()
    assert accuracy == pytest.approx(files.read_json_lines(run.metrics)[0]["test_accuracy"])
    parity.save_weights(tmp_path / "w.pth", weights, say=lambda _: None)
    assert_trees_equal(parity.load_weights(tmp_path / "w.pth").variables, weights.variables)


def test_a_field_of_another_version_is_refused_by_its_name(run):
    fields = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**fields, "warmup": 3}))
    with pytest.raises(UserError, match="unknown warmup"):
        read_config(run.config)
    run.config.write_text(json.dumps({name: value for name, value in fields.items() if name != "seed"}))
    with pytest.raises(UserError, match="missing seed"):
        read_config(run.config)


@pytest.mark.parametrize(
    "network",
    [
        '{"name": "tutorial", "channels": "two"}',
        '{"name": "tutorial", "dtype": 1}',
        "[",
        "[1]",
        "null",
        "[" * 100000,
        None,
    ],
)
def test_weights_that_do_not_say_what_they_are_of_tell_it_by_their_shapes(run, network):
    weights = jaxcnn.load(run.path)
    arrays = {name: np.asarray(array) for name, array in files.flat_names(weights.params).items()}
    files.save_arrays(run.weights, arrays, {"network": network} if network else {})
    again = jaxcnn.load(run.path)
    assert again.network == weights.network
    assert_trees_equal(again.variables, weights.variables)


def test_a_network_of_a_later_version_is_refused_by_its_name(run):
    arrays = files.flat_names(jaxcnn.load(run.path).params)
    files.save_arrays(run.weights, arrays, {"network": '{"name": "vgg"}'})
    with pytest.raises(UserError, match=r"network of another version: 'vgg'"):
        jaxcnn.load(run.path)


def test_sizes_that_a_file_does_not_have_cost_nothing(run):
    weights = jaxcnn.load(run.path)
    description = {**networks.describe(weights.network), "hidden": 10**9}
    for arrays in (files.flat_names(weights.params), table_of(weights.network).to_torch(weights.variables)):
        files.save_arrays(run.weights, arrays, {"network": json.dumps(description)})
        with pytest.raises(UserError, match="expected"):
            parity.load_weights(run.path)


def test_initial_weights_count_until_there_is_a_checkpoint(run, script, tmp_path):
    """As after a kill between the configuration and the first checkpoint."""
    parity.save_weights(tmp_path / "init.safetensors", jaxcnn.load(run.path))
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    run.metrics.unlink()
    fields = {
        **json.loads(run.config.read_text()),
        "init": str(tmp_path / "init.safetensors"),
        "learning_rate": 0.0,
        "epochs": 1,
    }
    run.config.write_text(json.dumps(fields))
    before = jaxcnn.load(tmp_path / "init.safetensors").variables
    result = script("train", "--resume", "--out", run.path)
    assert result.returncode == 0, result.stderr
    assert_trees_equal(jaxcnn.load(run.path).variables, before)
