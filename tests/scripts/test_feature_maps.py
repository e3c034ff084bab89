import csv
import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image

import parity
from jaxcnn import data, features, figures, pictures
from jaxcnn.errors import UserError
from jaxcnn.networks.tutorial import CNN
from jaxcnn.weights import Weights
from tests.conftest import ROOT
from tests.test_features import drawn


@pytest.fixture(scope="module")
def weights():
    return Weights(CNN(4, 16), drawn(CNN(4, 16)), tuple("abcdefghij"), "digits")


@pytest.fixture
def saved(tmp_path, weights):
    parity.save_weights(tmp_path / "w.safetensors", weights)
    return weights


@pytest.fixture
def module(request):
    """A script as a module, to call its functions."""
    spec = importlib.util.spec_from_file_location(request.param, ROOT / "scripts" / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_are_listed(script, saved):
    result = script("feature_maps", "w.safetensors", "--list")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(features.layer_shapes(CNN(4, 16)))
    assert "pool2    16 x 16 x 4\n" in result.stdout
    assert result.stderr == ""


def test_arrays_are_what_the_network_makes_of_the_images(script, tmp_path, saved):
    """An id and two pictures of one name, in one batch; every layer that is asked for as a figure and as an array."""
    digits = data.load("digits")
    image, label = digits.find("train_00007")
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "other").mkdir()
    Image.fromarray(image.transpose(1, 0, 2)).resize((50, 50)).save(tmp_path / "other" / "photo.png")
    layers = ["act1", "flat", "fc4", "input"]
    result = script(
        "feature_maps", "w.safetensors", "--image", "train_00007", "photo.png", "--image", "other/photo.png",
        "--layers", *layers, "--out", "out", "--format", "svg",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "photo.png: 32 x 32 RGB\n" in result.stdout
    assert "other/photo.png: 50 x 50 RGB, resized to 32 x 32\n" in result.stdout
    assert f"(true: {digits.class_names[label]})" in result.stdout
    names = ["train_00007", "photo", "photo-2"]
    expected = {f"{name}{end}" for name in names for end in (*(f"_{layer}.svg" for layer in layers), ".npz")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    maps = features.feature_maps(CNN(4, 16), saved.variables, np.stack([image]), layers)
    for name in names:
        with np.load(tmp_path / "out" / f"{name}.npz") as stored:
            assert list(stored) == layers
            assert stored["fc4"].shape == (1, 1, 10)
            assert all(stored[layer].dtype == np.float32 for layer in layers)
            for layer in layers if name != "photo-2" else []:
                found = features.as_maps(np.asarray(maps[layer])[0])
                np.testing.assert_allclose(stored[layer], found, rtol=1e-4, atol=1e-5)


def test_the_tutorials_two_figures_kernels_and_pytorch(script, tmp_path, saved):
    """Against other weights, so that there is a difference to see."""
    params = {**saved.params, "conv1": {**saved.params["conv1"], "bias": np.ones(4, np.float32)}}
    other = Weights(saved.network, {"params": params})
    parity.save_weights(tmp_path / "other.pth", other)
    result = script("feature_maps", "w.safetensors", "--against", "other.pth", "--filters")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "feature_maps"
    assert {path.name for path in out.iterdir()} == {
        "train_00007_conv1.png", "train_00007_conv2.png", "conv1_kernels.png", "conv2_kernels.png", "train_00007.npz"
    }  # fmt: skip
    with np.load(out / "train_00007.npz") as stored:
        assert set(stored) == {"conv1", "conv1_torch", "conv2", "conv2_torch"}
        difference = stored["conv1"] - stored["conv1_torch"]
    expected = np.asarray(saved.params["conv1"]["bias"]) - 1
    np.testing.assert_allclose(difference, np.broadcast_to(expected, (32, 32, 4)), atol=1e-5)
    assert f"differ by at most {np.abs(expected).max():.2g}" in result.stdout


@pytest.mark.parametrize("module", ["feature_maps"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "conv1", "atc1"], ["'atc1'", "did you mean act1?"]),
        (["--image", "tran_7"], ["tran_7", "did you mean train_00007?"]),
        (["--image", "train_99999"], ["train_99999", "train_01441"]),
        (["--image", "file"], ["file", "not a picture"]),
        (["--out", "file/x"], ["file/x", "cannot write"]),
        (["--against", "file"], ["file"]),
        (["--against", "wide.pth"], ["wide.pth", "another width"]),
        (["--filters", "--layers", "act1"], ["--filters", "conv1"]),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(module, tmp_path, monkeypatch, saved, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["feature_maps", "w.safetensors", *arguments])
    monkeypatch.setattr(module.platform, "start", lambda _: None)  # which the suite has started
    (tmp_path / "file").touch()
    if "wide.pth" in arguments:
        parity.save_weights(tmp_path / "wide.pth", Weights(CNN(5, 16), drawn(CNN(5, 16))))
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError) as problem:
        module.main()
    for word in words:
        assert word in str(problem.value)
    assert set(tmp_path.iterdir()) == before


def test_an_error_is_one_line(script, saved):
    result = script("feature_maps", "w.safetensors", "--image", "train_7")
    assert result.returncode == 2
    assert result.stderr == "error: neither an id nor a file: train_7; did you mean train_00007?\n"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("train_7", "train_00007"), ("tets_00042", "test_00042"), ("img_7", None), ("Foto.png", None),
     ("photo.pgn", "photo.png"), ("below/phto.png", "below/photo.png"), ("absent/photo.png", None)],
)  # fmt: skip
def test_the_nearest_image_is_offered(tmp_path, monkeypatch, text, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        Image.new("RGB", (9, 9)).save(folder / "photo.png")
    if text == "Foto.png":
        (tmp_path / "photo.png").unlink()
    with pytest.raises(
        UserError, match="no such file or folder" if "png" in text or "pgn" in text else "neither an id nor a file"
    ) as problem:
        pictures.read_image(text, lambda: data.load("digits"))
    assert ("did you mean" in str(problem.value)) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in str(problem.value)


@pytest.mark.parametrize("module", ["evaluate"], indirect=True)
def test_evaluate_counts_and_shows_what_is_wrong(module, tmp_path, monkeypatch, dataset, capsys):
    labels = dataset.test.labels
    probabilities = np.full((len(labels), 10), 0.01)
    probabilities[np.arange(len(labels)), labels] = 0.5
    for image, sure in ((3, 0.6), (8, 0.9), (11, 0.7)):
        probabilities[image, (labels[image] + 1) % 10] = sure
    seen = {}
    monkeypatch.setattr(figures, "confusion", lambda counts, *_: seen.update(counts=counts) or figures.page(1, 1))
    monkeypatch.setattr(figures, "most_wrong", lambda wrong, _: seen.update(wrong=wrong) or figures.page(1, 1))
    module.draw(tmp_path, dataset, probabilities, count=2)
    expected = np.zeros((10, 10), int)
    for image, label in enumerate(labels):
        expected[label, (label + 1) % 10 if image in (3, 8, 11) else label] += 1
    np.testing.assert_array_equal(seen["counts"], expected)
    assert [subject.name for subject in seen["wrong"]] == ["test_00008", "test_00011"]
    first = seen["wrong"][0]
    np.testing.assert_array_equal(first.image, dataset.test.images[8])
    assert first.truth == dataset.class_names[labels[8]]
    assert first.ranked()[0] == (dataset.class_names[(labels[8] + 1) % 10], 0.9)
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path / name}.png" for name in ("confusion", "most_wrong")
    ]


def test_evaluate_draws_and_writes_each_prediction(script, tmp_path, saved):
    result = script(
        "evaluate", "w.safetensors", "--figures", "drawn/here", "--json", "a.json", "--predictions", "all.csv"
    )
    assert result.returncode == 0, result.stderr
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    test, names = data.load("digits").test, data.load("digits").class_names
    assert [(row["id"], row["truth"]) for row in rows] == [
        (i, names[k]) for i, k in zip(test.ids, test.labels, strict=True)
    ]
    probabilities = saved.predict(test.images)
    assert [row["prediction"] for row in rows] == [names[k] for k in probabilities.argmax(axis=1)]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(axis=1), rtol=1e-4)
    assert {path.name for path in (tmp_path / "drawn/here").iterdir()} == {"confusion.png", "most_wrong.png"}
    assert json.loads((tmp_path / "a.json").read_text())["images"] == 355
