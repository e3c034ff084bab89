"""The commands with one's own pictures."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn import train, weights
from jaxcnn.config import DEFAULTS, to_json
from jaxcnn.errors import UserError
from jaxcnn.networks import initial_variables
from jaxcnn.networks.tutorial import CNN
from jaxcnn.recipe import recipe_for
from jaxcnn.run_directory import RunDirectory, data_source


@pytest.fixture
def mine(tmp_path):
    """Six pictures of each of three colours."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 100, (21, 30 + i, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / f"mine/{name}/{i}.png")
    return tmp_path / "mine"


def test_train_resume_and_evaluate(script, mine, tmp_path):
    narrow = CNN(4, 16, 3)
    initial = weights.Weights(narrow, initial_variables(narrow, jax.random.key(0)))
    weights.save_weights(tmp_path / "w.safetensors", initial)
    trained = script("train", "--dataset", "folder", "--data-dir", "mine", "--init", "w.safetensors", "--epochs", 1)
    assert trained.returncode == 0, trained.stderr
    assert "folder: 15 training and 3 test images in 3 classes\n" in trained.stdout
    resumed = script("train", "--dataset", "folder", "--resume", "--epochs", 2)
    assert resumed.returncode == 0, resumed.stderr
    accuracy = resumed.stdout.partition("trained 2 epochs: ")[2].partition(",")[0]

    found = script("evaluate", "runs/folder")  # whose configuration says where the pictures are
    assert found.stdout.startswith(f"folder {accuracy} ("), found.stderr
    assert "warning" not in found.stderr
    shutil.copy(mine / "red/4.png", mine / "blue/4.png")  # a test picture
    refused = script("train", "--dataset", "folder", "--resume", "--epochs", 3)
    assert "error: not the test images that the run began with: " in refused.stderr
    (mine / "blue/0.png").unlink()  # another one moves up to be tested, which was trained on
    moved = script("evaluate", "runs/folder", "--predictions", "all.csv")
    assert "warning: these are not the pictures that it was trained on" in moved.stderr
    assert "blue/5.png" in (tmp_path / "all.csv").read_text()
    shutil.rmtree(mine / "red")
    refused = script("train", "--dataset", "folder", "--resume", "--epochs", 3)
    assert refused.returncode == 2
    assert "error: not the classes that the network was trained on: red on one side only: " in refused.stderr


def test_where_the_pictures_of_weights_are(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(dataclasses.replace(DEFAULTS["speedrun"]["folder"], data_dir="/mine"))
    assert data_source(run.path, "folder", None, None) == ("folder", "/mine")
    assert data_source(str(run.weights), "folder", None, None) == ("folder", "/mine")
    assert data_source(run.path, "folder", None, "/yours") == ("folder", "/yours")
    assert data_source(run.path, "folder", "digits", None) == ("digits", None)
    assert data_source(tmp_path / "w.pth", "folder", None, None) == ("folder", None)
    assert data_source(tmp_path / "w.pth", None, None, None) == ("cifar10", None)
    run.config.write_text(to_json(dataclasses.replace(DEFAULTS["tutorial"]["cifar10"], data_dir="/cifar")))
    assert data_source(run.path, "cifar10", None, None) == ("cifar10", None)
    assert data_source(run.path, "folder", None, None) == ("folder", None)  # these weights are of another run


def test_other_classes_of_the_same_number_are_refused():
    known = weights.Weights(CNN(2, 3, 3), {}, ("ant", "bee", "cow"), "folder")
    for dataset, names in (("folder", known.class_names), ("digits", ("1", "2", "3"))):
        weights.check_names(known, dataset, names, "here")
    with pytest.raises(
        UserError, match="trained on: bee, bug on one side only: here; name a folder with the same ones"
    ):
        weights.check_names(known, "folder", ("ant", "bug", "cow"), "here")


@pytest.mark.parametrize("recipe", DEFAULTS)
def test_defaults_suit_few_pictures(recipe):
    """Of 60 pictures 48 are trained on: an epoch has several steps, and all of it dozens."""
    config = DEFAULTS[recipe]["folder"]
    assert config.epochs * train.steps_per_epoch(48, config.batch_size) >= 60
    assert recipe_for(config, 3).network.classes == 3


def test_no_folder_is_one_line_and_leaves_nothing(script, mine, tmp_path):
    result = script("train", "--dataset", "folder")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no folder is named: --dataset folder; add --data-dir DIR")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
