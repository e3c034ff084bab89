import pytest
import torch

import parity
from tests.conftest import assert_trees_equal
from tests.parity.conftest import small_weights


@pytest.fixture
def weights(tmp_path):
    parity.save_weights(tmp_path / "w.safetensors", small_weights("bfloat16"))
    return small_weights("bfloat16")


def test_convert_there_and_back(script, tmp_path, weights):
    result = script("convert", "w.safetensors", "w.pth")
    assert result.returncode == 0, result.stderr
    assert "w.pth: bfloat16" in result.stdout
    assert "--dataset digits" in result.stderr
    torch.save({"state_dict": torch.load(tmp_path / "w.pth", weights_only=True)}, tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "ema": {n: t + 1 for n, t in state.items()}}, tmp_path / "w.pth")
    result = script("convert", "w.pth", "back.safetensors")
    assert "several networks fit: state_dict, ema" in result.stderr
    result = script("convert", "w.pth", "back.safetensors", "--naming", "torch", "--entry", "state_dict")
    assert result.returncode == 0, result.stderr
    assert "took what is in 'state_dict.'" in result.stderr
    assert_trees_equal(parity.load_weights(tmp_path / "back.safetensors", dtype=None).params, weights.params)


def test_evaluate_takes_pytorchs_file(script, tmp_path, weights):
    assert script("convert", "w.safetensors", "w.pth").returncode == 0
    first, second = script("evaluate", "w.safetensors"), script("evaluate", "w.pth", "--dataset", "digits")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.pth", "b.pth"], ["no such file", "absent.pth"]),
        (["empty.pth", "b.pth"], ["an empty file", "empty.pth"]),
        (["w.safetensors", "."], ["a folder or a device, not a file", "name a file"]),
        (["w.safetensors", "absent/b.pth"], ["no such folder", "absent", "make it"]),
        (["w.safetensors", "b.txt"], [".txt", "end it in .pth, .pt or .safetensors"]),
        (["w.safetensors"], ["DST"]),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(command, tmp_path, weights, arguments, words):
    (tmp_path / "empty.pth").touch()
    before = sorted(tmp_path.iterdir())
    result = command("convert", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.iterdir()) == before
