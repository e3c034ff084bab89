"""`~` in every path that a command or a function takes."""

import numpy as np
import pytest
from PIL import Image

import parity
from jaxcnn import UserError, data, pictures
from jaxcnn.paths import at_home
from tests.parity.conftest import small_weights
from tests.scripts.commands import module

COMMANDS = ["train", "evaluate", "predict", "explore", "feature_maps", "convert", "compare_runs", "benchmark", "parity"]
PLACES = ("FILE", "DIR", "RUN", "SRC", "DST")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_of_a_command(home, command):
    parser = module(command).parser()
    paths = [a for a in parser._actions if str(a.metavar).startswith(PLACES)]
    assert paths
    for action in paths:
        assert parser._get_value(action, "~/x") == home / "x", action


def test_weights_and_pictures(home):
    parity.save_weights("~/w.safetensors", small_weights())
    parity.save_weights("~/w.pth", parity.load_weights("~/w.safetensors"))
    assert {path.name for path in home.iterdir()} == {"w.safetensors", "w.pth"}
    Image.new("RGB", (40, 32), "red").save(home / "a.png")
    assert parity.load_weights("~/w.pth").predict("~/a.png").shape == (1, 10)
    image = pictures.read_image("~/a.png", lambda: data.load("digits")).image
    np.testing.assert_array_equal(image[0, 0], [255, 0, 0])


def test_a_user_who_is_not_there():
    with pytest.raises(UserError, match="no home folder"):
        at_home("~nobody-at-all/x")
