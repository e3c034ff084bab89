import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

import jaxcnn
import parity
from jaxcnn import UserError, Weights, files
from tests.conftest import ROOT, assert_trees_equal
from tests.parity.conftest import DTYPES, TutorialModel, damaged, load, small_weights

FORMS = {"pth": "torch", "pt": "torch", "safetensors": "flax", "torch.safetensors": "torch"}


def save(folder: Path, form: str, weights: Weights) -> Path:
    """Weights in one of the forms, with this package's own writers."""
    path = folder / f"weights.{form}"
    if form == "run":
        path.mkdir(exist_ok=True)
        jaxcnn.weights.save_weights(path / "weights.safetensors", weights)
    else:
        parity.save_weights(path, weights, FORMS[form], say=lambda _: None)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["run", *FORMS])
@pytest.mark.parametrize("target", FORMS)
def test_every_form_to_every_other_and_back_is_bit_identical(tmp_path, dtype, source, target):
    weights = small_weights(dtype)
    (tmp_path / "back").mkdir()
    first, _ = load(save(tmp_path, source, weights), dtype=None)
    second, said = load(save(tmp_path, target, first), dtype=None)
    third, _ = load(save(tmp_path / "back", source, second), dtype=None)
    for found in (first, second, third):
        assert_trees_equal(found.params, weights.params)
        assert {a.dtype.name for a in files.flat_names(found.params).values()} == {dtype}
    assert said == []
    if target.endswith("safetensors") and not source.startswith("p"):
        assert second == Weights(weights.network, second.variables, weights.class_names, "digits")


def test_the_tutorials_model_loads_what_is_written_strictly_and_in_its_order(tmp_path):
    model, again = TutorialModel(), TutorialModel()
    torch.save(model.state_dict(), tmp_path / "cifar10model.pth")
    weights, said = load(tmp_path / "cifar10model.pth")
    parity.save_weights(tmp_path / "again.pth", weights)
    state = torch.load(tmp_path / "again.pth", weights_only=True)
    again.load_state_dict(state, strict=True)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert said == []
    for naming in ("flax", "torch"):
        parity.save_weights(tmp_path / "again.safetensors", weights, naming)
        assert_trees_equal(load(tmp_path / "again.safetensors")[0].params, weights.params)
    state = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    again.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)


@pytest.mark.parametrize(
    ("prefix", "separator"), [("params/", "/"), ("params.", "."), ("", "."), ("model/params/", "/")]
)
def test_flax_names_of_other_programs(tmp_path, weights, prefix, separator):
    arrays = files.flat_names(weights.params).items()
    named = {prefix + name.replace("/", separator): np.asarray(array) for name, array in arrays}
    safetensors.numpy.save_file(named, tmp_path / "w.safetensors")
    found, said = load(tmp_path / "w.safetensors")
    assert_trees_equal(found.params, weights.params)
    assert found.dataset is None
    assert len(said) == bool(prefix)


def test_types_are_cast_where_they_are_to_be_computed_with(tmp_path):
    weights = small_weights("float64")
    path = save(tmp_path, "pth", weights)
    assert load(path)[0].params["fc3"]["bias"].dtype == np.float32
    weights.params["fc3"]["bias"][1] = 1e300
    path = save(tmp_path, "pth", weights)
    assert load(path, dtype=None)[0].params["fc3"]["bias"][1] == 1e300
    with pytest.raises(UserError, match="fc3/bias: expected numbers within float32's range"):
        load(path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fc3/bias": None}, "fc3/bias: expected [3], got nothing"),
        ({"fc5/kernel": np.zeros(2, np.float32)}, "fc5/kernel: expected no such entry"),
        ({"fc3/bias": np.full(3, np.nan, np.float32)}, "fc3/bias: expected finite numbers"),
        (
            {"fc3/bias": np.zeros(3, np.int32)},
            "fc3/bias: expected float32 or float64 or float16 or bfloat16, got int32",
        ),
    ],
)
def test_safetensors_that_do_not_fit(tmp_path, weights, fault, words):
    arrays = {**{k: np.asarray(a) for k, a in files.flat_names(weights.params).items()}, **fault}
    whole = {name: array for name, array in arrays.items() if array is not None}
    safetensors.numpy.save_file(whole, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as raised:
        load(tmp_path / "w.safetensors")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "name", ["absent.pth", "absent", "empty.pth", "empty.safetensors", "text.pth", "folder", "folder.pth"]
)
def test_what_is_no_weights_file(tmp_path, name):
    for folder in ("folder", "folder.pth"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pth").write_text("conv1.weight\n")
    with pytest.raises(UserError, match=name):
        load(tmp_path / name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    return {form: save(folder, form, small_weights()).read_bytes() for form in FORMS}


def same_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found, _ = load(path)
    except UserError as problem:
        assert "\n" not in str(problem)  # noqa: PT017
    else:
        assert_trees_equal(found.params, small_weights().params)
        assert found.class_names in ((), tuple("0123456789"))


@given(data=st.data(), form=st.sampled_from(list(FORMS)))
def test_damaged_files_are_refused_or_undamaged_where_it_matters(saved, tmp_path_factory, data, form):
    """Cut short, a bit flipped, a piece overwritten: our files carry checksums, and what is not noticed is no harm."""
    same_or_refused(tmp_path_factory.mktemp("damaged") / f"w.{form}", damaged(data.draw, saved[form]))


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_of_the_numbers_is_noticed(saved, tmp_path, form):
    content = bytearray(saved[form])
    place = content.index(np.asarray(small_weights().params["fc3"]["bias"]).tobytes())
    content[place] ^= 1
    (tmp_path / f"w.{form}").write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load(tmp_path / f"w.{form}")


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_noise_is_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("noise") / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load(path)


@pytest.mark.parametrize(
    ("name", "naming", "words"),
    [
        ("w.txt", None, "end it in .pth, .pt or .safetensors"),
        ("w.pth", "flax", "leave --naming out"),
        ("absent/w.pth", None, "no such folder"),
        ("absent/w.safetensors", None, "no such folder"),
        ("folder.pth", None, "a folder or a device"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, weights, name, naming, words):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match=words):
        parity.save_weights(tmp_path / name, weights, naming)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pth"]


def cut_short(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[:-5000])


def test_a_failed_save_leaves_what_was_there(tmp_path, weights, monkeypatch):
    for form in ("pth", "safetensors"):
        path = save(tmp_path, form, weights)
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", cut_short)
            with pytest.raises(UserError):
                save(tmp_path, form, small_weights(seed=1))
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_file_that_reads_back_otherwise_does_not_count(tmp_path, weights, form, monkeypatch):
    """safetensors issue 826, and its like: the writer is at fault, not the disk."""
    torch_save, safe_save = torch.save, safetensors.numpy.save
    monkeypatch.setattr(torch, "save", lambda s, f: torch_save({**s, "fc4.bias": s["fc4.bias"] + 1}, f))
    monkeypatch.setattr(safetensors.numpy, "save", lambda s, m: safe_save({**s, "fc4/bias": s["fc4/bias"] + 1}, m))
    with pytest.raises(UserError, match=r"not what was read back|checksum"):
        save(tmp_path, form, weights)
    assert list(tmp_path.iterdir()) == []


def test_only_writing_a_pth_needs_torch(tmp_path, weights):
    for form in ("pth", "safetensors", "torch.safetensors"):
        save(tmp_path, form, weights)
    program = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)  # as if not installed
import parity
for name in sys.argv[1:]:
    try:
        parity.load_weights(name)
        print("loaded")
        parity.save_weights("never.pth", parity.load_weights(name))
    except Exception as problem:
        print(type(problem).__name__, problem)
"""
    names = [tmp_path / f"weights.{form}" for form in ("safetensors", "torch.safetensors", "pth")]
    done = subprocess.run([sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[::2] == ["loaded"] * 3
    for line in done.stdout.splitlines()[1::2]:
        assert line.startswith("UserError PyTorch is not installed")
        assert "pip install 'jaxcnn[parity]'" in line


def test_zip_checksums_are_what_notices(saved, tmp_path):
    """PyTorch itself loads a file with a flipped bit and says nothing: if that changes, our own look may go."""
    content = bytearray(saved["pth"])
    content[content.index(np.asarray(small_weights().params["fc3"]["bias"]).tobytes())] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    torch.load(tmp_path / "w.pth", weights_only=True)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        assert archive.testzip()
