"""The same images, labels and ids from every form, by every way of naming it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcnn import data
from jaxcnn.data import official, tfds_folder
from jaxcnn.errors import UserError

FORMS = ["python", "binary", "python_tar", "binary_tar", "array_record", "tfrecord"]
FORMS += ["parquet", "saved", "mat", "repickled", "classes"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads(forms, form):
    for _ in ("decoded", "kept"):
        forms.assert_same(data.load("cifar10", getattr(forms, form)))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_prepares(forms, form, tmp_path):
    version = data.prepare(getattr(forms, form), tmp_path / "to")
    assert version == tmp_path / "to/cifar10/3.0.2"
    forms.assert_same(tfds_folder.read(version))
    forms.assert_same(data.load("cifar10", tmp_path / "to"))


def test_ways_of_naming_a_folder(forms, monkeypatch):
    version = forms.array_record / "cifar10/3.0.2"
    ways = [
        version,
        version.parent,
        forms.python.parent,
        forms.binary.parent,
        f"file://{forms.python}",
        forms.python_tar.parent,
    ]
    for way in [*ways, forms.python_tar.as_uri(), Path(f"file://{forms.binary_tar}")]:
        forms.assert_same(data.load("cifar10", way))
    monkeypatch.chdir(forms.python)
    forms.assert_same(data.load("cifar10", "."))
    monkeypatch.setenv("TFDS_DATA_DIR", str(forms.tfrecord))
    forms.assert_same(data.load("cifar10"))


def test_default_folder_is_tfds_own(forms, monkeypatch):
    home = Path("~/tensorflow_datasets").expanduser()
    home.parent.mkdir()
    forms.tfrecord.rename(home)
    forms.assert_same(data.load("cifar10"))


def test_plain_tfds_reads_what_is_prepared(forms, tmp_path):
    import tensorflow_datasets as tfds

    data.prepare(forms.python, tmp_path / "to")
    builder = tfds.builder("cifar10", data_dir=tmp_path / "to")
    source = tfds.data_source("cifar10", data_dir=tmp_path / "to", split="train")
    assert (builder.info.name, str(builder.info.version)) == ("cifar10", "3.0.2")
    assert builder.info.features["label"].names == list(official.CLASS_NAMES)
    assert json.loads((tmp_path / "to/cifar10/3.0.2/dataset_info.json").read_text())["moduleName"] == (
        "tensorflow_datasets.image_classification.cifar"
    )
    example = source[0]
    index = int(example["id"].decode().removeprefix("train_"))
    np.testing.assert_array_equal(example["image"], forms.images[index])
    assert example["label"] == forms.labels[index]


def test_stored_order_is_tfds_own_shuffle(forms):
    """Sorted by md5 of `<split><index>`, which puts train_16399 first among 50,000, as in the published data set."""
    from hashlib import md5

    from tensorflow_datasets.proto import tf_example_pb2

    records = tfds_folder._array_records(forms.array_record / "cifar10/3.0.2/cifar10-train.array_record-00000-of-00001")
    ids = [tf_example_pb2.Example.FromString(r).features.feature["id"].bytes_list.value[0].decode() for r in records]
    order = sorted(range(len(ids)), key=lambda i: md5(f"train{i}".encode()).hexdigest())
    assert ids == [f"train_{i:05d}" for i in order]
    assert min(range(50_000), key=lambda i: md5(f"train{i}".encode()).hexdigest()) == 16399


def test_tensorflow_is_never_imported_nor_anything_early(process, forms, tmp_path):
    """Where TensorFlow is installed, tfds imports it at the first touch; this one would end the process."""
    (tmp_path / "installed/tensorflow").mkdir(parents=True)
    (tmp_path / "installed/tensorflow/__init__.py").write_text("import os; os._exit(77)")
    child = process(
        f"""
import sys; sys.path.insert(0, {str(tmp_path / "installed")!r})
early = [m for m in ("tensorflow_datasets", "requests", "PIL", "sklearn", "platformdirs", "tqdm") if m in sys.modules]
assert not early, early
data.prepare({str(forms.tfrecord)!r}, {str(tmp_path / "to")!r})
assert len(data.load("cifar10", {str(forms.array_record)!r}).train) == 50
data.load("digits")
assert not {{"jax", "tensorflow", "sklearn", "scipy"}} & sys.modules.keys()
"""
    )
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors


def test_nothing_is_named_exactly(tmp_path):
    with pytest.raises(UserError, match=r"no data set 'mnist'.*cifar10, digits and folder"):
        data.load("mnist")
    ways = {"typo": "--data-dir.*--from.*MIRROR.*--dataset digits", "": "name another, .*--dataset folder"}
    for name, todo in ways.items():
        missing = tmp_path / name
        with pytest.raises(UserError, match=rf"{missing}; .*{todo}"):
            data.load("cifar10", missing)
        with pytest.raises(UserError, match=rf"{missing}; "):
            data.prepare(missing, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert "tensorflow" not in sys.modules
