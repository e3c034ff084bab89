import json
import re

import numpy as np
import pytest


def test_train_then_evaluate(script, tmp_path):
    """The commands as a newcomer gives them, with the whole network and few steps."""
    trained = script("train", "--dataset", "digits", "--epochs", 1, "--batch-size", 256, "--platform", "cpu")
    assert trained.returncode == 0, trained.stderr
    accuracy = re.search(r"test accuracy +([\d.]+)%", trained.stdout)[1]
    for word in ("cpu", "float32 (TF32 off)", "4,210,090", "runs/digits/curves.png", "runs/digits/weights.safetensors"):
        assert word in trained.stdout
    # 1,442 images, three times the 29.1 MFLOP of the two convolutions and two dense layers
    assert f"trained 1 epoch: test accuracy {accuracy}%, 0.000126 PFLOP" in trained.stdout

    again = script("train", "--dataset", "digits", "--resume")
    assert again.returncode == 0
    assert "already" in again.stdout

    for weights in ("runs/digits", "runs/digits/weights.safetensors"):
        result = script("evaluate", weights, "--json", "result.json", "--logits", "logits.npz")
        assert result.returncode == 0, result.stderr
        assert f"test accuracy {accuracy}%" in result.stdout
        stored = np.load(tmp_path / "logits.npz")
        found = json.loads((tmp_path / "result.json").read_text())
        assert (stored["logits"].argmax(1) == stored["labels"]).mean() == found["test_accuracy"]
        assert stored["ids"][0] == "test_00000"
        assert stored["logits"].dtype == np.float32


def assert_refused(result, words, tmp_path):
    """In one line, which has the words, and nothing is written."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--platform", "gpu"], ["no gpu", "make setup EXTRA=cuda"]),
        (["--platform", "tpu"], ["no tpu", "make setup EXTRA=tpu"]),
        (["--epoch", "3"], ["--epoch", "did you mean --epochs?"]),
        (["--batch-size", "7", "--devices", "2"], ["--batch-size", "6 or 8"]),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(script, tmp_path, arguments, words):
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(script("train", "--dataset", "digits", *arguments), words, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--platform", "npu"], ["--platform", "npu"]),
        (["--epochs", "0"], ["--epochs", "'0'"]),
        (["--epochs", "1.5"], ["--epochs"]),
        (["--learning-rate", "nan"], ["--learning-rate", "'nan'"]),
        (["--momentum", "1.5"], ["--momentum", "1.5"]),
        (["--seed", "-1"], ["--seed"]),
        (["--seed", "4294967296"], ["--seed"]),
        (["--resume"], ["runs/digits"]),
        (["--init", "absent.safetensors"], ["absent.safetensors"]),
        (["--out", "."], ["--out"]),
    ],
)
def test_a_wrong_value_is_one_line_and_leaves_nothing(command, tmp_path, arguments, words):
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(command("train", "--dataset", "digits", *arguments), words, tmp_path)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_teaches(script, name):
    result = script(name, "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout


@pytest.mark.parametrize("weights", ["absent", "empty.safetensors", "."])
def test_weights_that_cannot_be_read(command, tmp_path, weights):
    (tmp_path / "empty.safetensors").touch()
    result = command("evaluate", weights)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert weights in result.stderr


@pytest.mark.parametrize("name", ["train", "prepare_data"])
def test_a_home_that_cannot_be_written_is_one_line(script, tmp_path, name):
    nowhere = "/proc/none"  # where even root can write nothing
    result = script(name, HOME=nowhere, XDG_CACHE_HOME=nowhere, MPLCONFIGDIR=str(tmp_path / "mpl"))
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith(f"error: No such file or directory: {nowhere};")
    assert result.stderr.count("\n") == 1
