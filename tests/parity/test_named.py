"""Whatever is given as weights, one line says what it is and what to do; a network in several files is put together."""

import gzip
import json
import zipfile
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

import jaxcnn
import parity
from jaxcnn import UserError, files
from tests.conftest import assert_trees_equal
from tests.parity.conftest import load, small_weights, state_dict
from tests.test_versions import FIXTURES


def numpy_state(weights) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state_dict(weights).items()}


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", b"")


SAFE = safetensors.numpy.save(numpy_state(small_weights()))
TEXTS = {
    "w.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a Git LFS pointer.*run git lfs pull"),
    "page.pth": (b"<!DOCTYPE html><html>", "an HTML page.*download the file itself"),
    "w.bin": (b"", "an empty file.*get another copy"),
    "w.safetensors": (b"", "an empty file"),
    "text": (b"conv1.weight\n", "neither a PyTorch file nor a safetensors file"),
    "w.msgpack": (flax.serialization.to_bytes({"params": {"a": np.ones(2)}}), "a msgpack file of Flax.*serialization"),
    "w.gz": (gzip.compress(b"x"), "a gzip archive.*unpack it"),
    "w.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "w.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "batch": (b"\x80\x02}q\x01U\x0bbatch_labelq\x02", "one batch of CIFAR-10, not weights"),
    "w.joblib": (b"\x80\x04\x8c\x13joblib.numpy_pickle", "a joblib file"),
    "cut.pth": (b"PK\x03\x04" + bytes(90), "a cut or damaged zip archive"),
    "old.pth": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9", "its pickle is cut or damaged"),
    "long.safetensors": (b"\xff\x00\xff\xff\xff\xff\xff\x00{}", "its header is cut or damaged"),
    "cut1.safetensors": (SAFE[:200], "its header is cut or damaged"),
    "cut2.safetensors": (SAFE[:-9], "it is cut, or its header is damaged"),
    "garbled.safetensors": (SAFE.replace(b'"dtype"', b'"dtyqe"'), "it is cut, or its header is damaged"),
}


def odd_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e9", b"")
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))


WRITTEN = {
    "odd.pth": (odd_zip, "a cut or damaged zip archive"),
    "float8": (
        lambda path: safetensors.torch.save_file({"a": torch.zeros(2).to(torch.float8_e5m2)}, path),
        "a: numbers of type F8_E5M2.*save them as float16",
    ),
    "w.npz": (lambda path: np.savez(path, a=np.ones(2)), "a NumPy archive"),
    "w.npy": (lambda path: np.save(path, np.ones(2)), "a NumPy array.*has no names"),
    "w.png": (lambda path: Image.new("RGB", (2, 2)).save(path), "a PNG picture.*name it as a picture"),
    "w.zip": (zip_of, "a zip archive.*unpack it"),
}


@pytest.mark.parametrize("name", [*TEXTS, *WRITTEN])
def test_what_is_no_weights_is_named(tmp_path, name):
    write, words = WRITTEN.get(name) or (lambda path: path.write_bytes(TEXTS[name][0]), TEXTS[name][1])
    write(tmp_path / name)
    for read in (parity.load_weights, jaxcnn.load):
        with pytest.raises(UserError, match=words if read is parity.load_weights else name) as raised:
            read(tmp_path / name)
        assert len(str(raised.value).replace(str(tmp_path), "")) < 160


def test_jaxcnn_names_what_reads_pytorchs_files(tmp_path, weights):
    torch.save(state_dict(weights), tmp_path / "w.pth")
    parity.save_weights(tmp_path / "w.safetensors", weights, "torch")
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(UserError, match=r"PyTorch.*parity.load_weights"):
            jaxcnn.load(tmp_path / name)


def test_a_checkpoint_in_a_run_names_the_run():
    checkpoint = next((FIXTURES / "run-0.1/checkpoints").glob("*.safetensors"))
    for read in (parity.load_weights, jaxcnn.load):
        with pytest.raises(UserError, match=r"a checkpoint, .*; name the run, .*run-0\.1, for its weights"):
            read(checkpoint)


def test_conventions_of_ours_hold_for_our_format_only(tmp_path, weights):
    """Another program's metadata may have a sha256, of whatever it likes."""
    metadata = {"sha256": "0" * 64, "format": "pt"}
    safetensors.numpy.save_file(numpy_state(weights), tmp_path / "w", metadata)
    assert_trees_equal(load(tmp_path / "w")[0].params, weights.params)
    assert files.read_arrays(tmp_path / "w")[1] == metadata


def sharded(folder: Path, weights, suffix: str, index: str) -> list[Path]:
    """Two files and their index, as the hub has them."""
    folder.mkdir()
    state, weight_map = state_dict(weights), {}
    for i in range(2):
        part = dict(list(state.items())[i::2])
        name = f"model-0000{i + 1}-of-00002.{suffix}"
        torch.save(part, folder / name)
        if suffix == "safetensors":
            safetensors.numpy.save_file({n: t.numpy() for n, t in part.items()}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [folder, folder / index, *(folder / name for name in sorted({*weight_map.values()}))]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_network_in_several_files_is_read_given_any_of_them(tmp_path, weights, suffix):
    for path in sharded(tmp_path / "hub", weights, suffix, f"model.{suffix}.index.json"):
        found, said = load(path)
        assert_trees_equal(found.params, weights.params)
        assert said == []
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*, which this index names"):
        load(tmp_path / "hub")


@pytest.mark.parametrize("text", ["{}", "[", '{"weight_map": {"a": "../w.pth"}}', '{"weight_map": {"a": 3}}'])
def test_an_index_names_files_beside_it_only(tmp_path, weights, text):
    (tmp_path / "hub").mkdir()
    torch.save(state_dict(weights), tmp_path / "w.pth")
    torch.save(state_dict(weights), tmp_path / "hub/pytorch_model.bin")
    (tmp_path / "hub/x.index.json").write_text(text)
    with pytest.raises(UserError, match=r"a JSON file|neither"):
        load(tmp_path / "hub/x.index.json")
    assert_trees_equal(load(tmp_path / "hub")[0].params, weights.params)


def test_the_form_is_told_by_content_not_by_suffix(tmp_path, weights):
    torch.save(state_dict(weights), tmp_path / "w.safetensors")
    parity.save_weights(tmp_path / "a.safetensors", weights)
    (tmp_path / "a.safetensors").rename(tmp_path / "w.pth")
    (tmp_path / "blob").write_bytes(SAFE)
    for name in ("w.safetensors", "w.pth", "blob"):
        assert_trees_equal(load(tmp_path / name)[0].params, weights.params)
