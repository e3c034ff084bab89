import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

import parity
from jaxcnn import data, pictures
from jaxcnn.errors import UserError
from jaxcnn.figures import Subject
from jaxcnn.networks.tutorial import CNN
from jaxcnn.weights import Weights
from tests.scripts.commands import module
from tests.test_features import drawn

predict = module("predict")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def no_dataset():
    raise AssertionError("no id is among the names")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Seven pictures, and what is none, beside weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (32 + i, 40, 3), dtype=np.uint8)).save(f"photos/{6 - i}.PNG")
    for name in ("photos/._0.png", "photos/notes.txt", "photos/bad.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    parity.save_weights(tmp_path / "w.safetensors", Weights(CNN(4, 16), drawn(CNN(4, 16)), NAMES, "digits"))
    return tmp_path


def test_pictures_and_ids_in_columns_and_as_json(script, folder):
    """A folder, a pattern that names some of it again, an id; what cannot be read is said and the rest goes on."""
    words = ["photos", "photos/[0-3].PNG", "train_00007", "absent.png", "empty"]
    result = script("predict", "w.safetensors", *words, "--top", 2, "--json", "all.json")
    assert result.returncode == 2
    errors = result.stderr.splitlines()
    starts = ["not a picture: photos/bad.jpg; ", "no such file or folder: absent.png; ", "no pictures in this folder"]
    assert [line.startswith(f"error: {start}") for line, start in zip(errors, starts, strict=True)] == [True] * 3
    lines = result.stdout.splitlines()
    names = [*(f"photos/{i}.PNG" for i in range(7)), "train_00007"]
    assert [line.split()[0] for line in lines] == names
    assert len({line.index("%") for line in lines}) == 1
    digits = data.load("digits")
    image, label = digits.find("train_00007")
    assert lines[-1].endswith(f"(true: {digits.class_names[label]})")
    entries = {one["picture"]: one for one in json.loads((folder / "all.json").read_text())}
    assert list(entries) == [*names[:7], "photos/bad.jpg", "train_00007", "absent.png", "empty"]
    assert "not a picture" in entries["photos/bad.jpg"]["error"]
    expected = parity.load_weights("w.safetensors").predict([*names[:7], image])
    for name, row, line in zip(names, expected, lines, strict=True):
        ranked = [(one["class"], one["probability"]) for one in entries[name]["classes"]]
        order = np.argsort(-row)
        assert [name for name, _ in ranked] == [NAMES[i] for i in order]
        np.testing.assert_allclose([p for _, p in ranked], row[order], rtol=1e-4)
        assert line.split()[1:5] == [word for name, p in ranked[:2] for word in (name, f"{p:.1%}")]


def test_batches_are_of_one_size_and_pictures_are_read_one_by_one(folder, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    sizes = []

    class Network:
        def predict(self, images):
            sizes.append(images.shape)
            return images[:, 0, 0, :2] / np.float32(255)

    names = predict.expanded("photos")
    found = list(predict.classified(Network(), names, ("a", "b"), no_dataset))
    assert sizes == [(3, 32, 32, 3)] * 3
    assert [isinstance(one, UserError) for one in found] == [False] * 7 + [True]
    for name, one in zip(names[:7], found, strict=False):
        image, _ = pictures.read(folder / name)
        np.testing.assert_array_equal(one.probabilities, image[0, 0, :2] / np.float32(255))
        assert one.name == name


def test_names_come_from_standard_input_in_the_bytes_that_files_have(folder, monkeypatch):
    given = b"photos/0.PNG\r\n\n" + "é\n".encode() + b"\xff.png\nphotos/[12].*\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    names = ["x.png", "photos/0.PNG", "é", os.fsdecode(b"\xff.png"), "photos/1.PNG", "photos/2.PNG"]
    assert predict.named(["x.png", "-", "x.png"]) == names
    with pytest.raises(UserError, match="no pictures: standard input"):
        predict.named(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b.png\0c\nd.png\0")))
    assert predict.named(["-"]) == ["a b.png", "c\nd.png"]
    with pytest.raises(UserError, match="an empty name"):
        predict.named([""])


def test_a_folder_is_searched_and_links_that_lead_back_are_not_followed(folder):
    for name in ("one", "two"):
        (folder / "photos" / name).symlink_to(folder)
    every = sorted(f"photos/{i}.PNG" for i in range(7))
    for word in ("**/*.PNG", "photos", ".", str(folder / "**/*")):
        found = [os.path.relpath(name, folder) for name in predict.expanded(word)]
        assert [name for name in found if name.endswith(".PNG")] == every, word
    assert not any(name.endswith(".txt") for name in predict.expanded("photos/*"))


def test_a_name_that_no_file_can_have_is_said(folder):
    for name in ("x" * 5000, "a\0b", os.fsdecode(b"\xff.png")):
        assert predict.expanded(name) == [name]
        assert isinstance(predict.read(name, no_dataset), UserError)


def test_a_name_never_breaks_a_line():
    images, row = np.zeros((32, 32, 3), np.uint8), np.array([0.25, 0.75], np.float32)
    found = [Subject(name, images, row, ("cat", "a dog")) for name in ("a\n\x1b[1m", os.fsdecode(b"\xff"))]
    assert list(predict.lines(found, 5)) == [
        "a??[1m  a dog  75.0%  cat    25.0%",
        "?       a dog  75.0%  cat    25.0%",
    ]


def test_a_data_set_that_cannot_be_read_ends_it_once(folder, monkeypatch):
    calls = []

    def load(*given):
        calls.append(given)
        raise UserError("missing", "here", "get it")

    monkeypatch.setattr(predict.data, "load", load)
    monkeypatch.setattr(predict.platform, "start", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["predict", "w.safetensors", "photos", "test_00001", "test_00002"])
    with pytest.raises(UserError, match="missing"):
        predict.main()
    assert len(calls) == 1
