"""Where people have it: some levels down, in archives, beside other things; and what is named instead of it."""

import pickle
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from hypothesis import given, settings
from pyarrow import parquet

from jaxcnn import data
from jaxcnn.data import identity, official, storage
from jaxcnn.errors import UserError
from tests.data.conftest import squares
from tests.data.forms import SPELLINGS, N, png, table_of
from tests.data.test_official import damage, damaged
from tests.test_pictures import png as png_of_size


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder beside the forms."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


HORSE = official.CLASS_NAMES.index("horse")


def refused(path: Path, allow_modified: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        data.find(path).read(allow_modified)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path("any/name") / file.relative_to(folder))
    return path


FORMS = ["python", "binary", "array_record", "tfrecord", "parquet", "saved", "mat", "repickled", "classes"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_four_levels_down_and_in_an_archive_in_a_folder_in_an_archive(forms, form, tmp_path):
    folder = getattr(forms, form)
    shutil.copytree(folder, tmp_path / "1/2/3/4" / folder.name if form != "array_record" else tmp_path / "1/2/any")
    forms.assert_same(data.load("cifar10", tmp_path / "1"))
    inner = zipped(tmp_path / "a.data", folder)
    for mode, name in (("w", "b"), ("w:xz", "c.zip")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(inner, f"./x/{inner.name}")
            archive.add(__file__, "x/readme")
        forms.assert_same(data.load("cifar10", tmp_path / name))


def test_complete_set_is_preferred(forms, mine):
    """Stray files of other forms, half a set and a broken archive do not hide the one that is whole."""
    shutil.copytree(forms.python, mine / "a/b")
    shutil.copy(forms.binary / "test_batch.bin", mine / "a/b")
    shutil.copy(forms.mat / "data_batch_1.mat", mine)
    (mine / "cifar-10-python.tar.gz").write_bytes(forms.python_tar.read_bytes()[:50_000])
    (mine / "link").symlink_to(mine)
    forms.assert_same(data.load("cifar10", mine))
    assert f"name its folder, {mine}/a/b" in refused(mine / "a/b/data_batch_2")


def test_the_archive_that_holds_it_is_taken(forms, mine):
    with zipfile.ZipFile(mine / "cifar-old.zip", "w") as archive:
        archive.writestr("readme", "x" * 9999)
    assert "no CIFAR-10 in this archive" in refused(mine)
    shutil.copy(forms.binary_tar, mine / "unlikely")
    for _ in ("found", "cached"):
        forms.assert_same(data.load("cifar10", mine))
    assert storage.beside(mine / "unlikely").is_file()


def cifar100(path: Path) -> Path:
    path.mkdir()
    for name, label in (("train", "training batch 1 of 1"), ("test", "testing batch 1 of 1")):
        content = {"batch_label": label, "fine_labels": [0] * N, "data": bytes(3000), "coarse_labels": [0] * N}
        (path / name).write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_what_else_is_there_is_named(forms, tmp_path):
    """A folder, and each file alone: what it is and what to do, which is never what was just done."""
    assert "no CIFAR-10 in this folder (no batches," in (text := refused(cifar100(tmp_path / "100")))
    assert "there is test (CIFAR-100), train (CIFAR-100)" in text
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    whole = zipped(tmp_path / "whole.zip", forms.python).read_bytes()
    files = {
        "lfs": (lfs, "a Git LFS pointer in place of the file, not CIFAR-10", "git lfs pull"),
        "page": (b"<!DOCTYPE html><html>", "an HTML page", "download the file itself"),
        "empty": (b"", "an empty file", "another copy"),
        "seven": (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
        "cut.zip": (whole[:-99], "a cut or damaged zip archive", "another copy"),
        "cut.tgz": (forms.python_tar.read_bytes()[:-99], "cut or damaged archive of", "another copy"),
        "hdf": (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "name another"),
        "text": (b"hello", "not CIFAR-10 in any known form", "name another"),
        "meta": (pickle.dumps({"label_names": [], "num_vis": 3072}, 2), "CIFAR-10's batches.meta", "of all six"),
        "batch": ((forms.python / "data_batch_1").read_bytes(), "one batch of CIFAR-10", "of all six"),
        "fine": ((tmp_path / "100/train").read_bytes(), "CIFAR-100", "take CIFAR-10"),
        "parquet": ((forms.parquet / "test-00000-of-00001.parquet").read_bytes(), "a parquet file", "train and test"),
        "arrow": ((forms.saved / "test/data-00000-of-00001.arrow").read_bytes(), "an Arrow stream", "train and test"),
        "mat": ((forms.mat / "test_batch.mat").read_bytes(), "a MATLAB file", "name the folder"),
    }
    for name, (content, what, todo) in files.items():
        (tmp_path / name).write_bytes(content)
        text = refused(tmp_path / name)
        assert what in text, (name, text)
        assert todo in text.partition("; ")[2], (name, text)
        assert "allow-modified" not in text
    (tmp_path / "clone").mkdir()
    shutil.copy(tmp_path / "lfs", tmp_path / "clone/train-00000-of-00001.parquet")
    assert "parquet (a Git LFS pointer in place of the file)): " in (text := refused(tmp_path / "clone"))
    assert text.endswith("; run git lfs pull where it is from")


def test_kaggle_says_that_its_test_images_have_no_labels(forms, tmp_path):
    with zipfile.ZipFile(tmp_path / "cifar-10.zip", "w") as archive:
        archive.writestr("trainLabels.csv", "id,label\n1,frog\n")
        archive.writestr("train.7z", b"7z\xbc\xaf\x27\x1c" + bytes(2000))
    assert "Kaggle's form of CIFAR-10, whose test images have no labels" in refused(tmp_path / "cifar-10.zip")


def test_incomplete_sets_say_what_is_missing(forms):
    (forms.parquet / "test-00000-of-00001.parquet").unlink()
    assert "parquet file missing: test" in refused(forms.parquet)
    shutil.rmtree(forms.classes / "TEST/dog")
    assert f"no pictures of test/dog: {forms.classes}" in refused(forms.classes)
    assert "no pictures of test/airplane, test/automobile, test/bird, ...: " in refused(forms.classes / "TRAIN")
    next((forms.classes / "TRAIN/dog").iterdir()).unlink()
    shutil.copytree(forms.classes / "TRAIN/dog", forms.classes / "TEST/dog")
    assert "49 train images instead of 50" in refused(forms.classes)


def test_folders_of_classes_are_ones_own_pictures_too(forms, mine):
    """Both are kept beside the folder, and neither is taken for the other."""
    for split, other in (("TRAIN", "train"), ("TEST", "val")):
        for file in (forms.classes / split).rglob("*.png"):
            name = official.CLASS_NAMES[SPELLINGS.index(file.parent.name)]
            (mine / other / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, mine / other / name / f"{int(file.stem):03d}.png")
    for _ in range(2):
        assert data.load("folder", mine).train.labels[:10].tolist() == [*range(10)]
        forms.assert_same(data.load("cifar10", mine))


def test_same_checksum_from_every_form(forms, capsys):
    for form in FORMS:
        data.find(getattr(forms, form)).read(False)
    said = capsys.readouterr().err
    assert len({*said.splitlines()}) <= 2  # the official pixels, or not, with one checksum
    assert len({line[-16:] for line in said.splitlines()}) == 1
    assert "order" not in said


def test_official_files_and_official_pixels_are(forms, capsys, monkeypatch):
    data.load("cifar10", forms.binary_tar)
    data.load("cifar10", forms.parquet)
    assert capsys.readouterr().err.count("CIFAR-10, the official pixels; ") == 2
    hub = forms.images[: 5 * N].reshape(5, N, -1)[[3, 2, 1, 4, 0]]
    monkeypatch.setattr(identity, "PIXELS", (identity._sha256(hub), identity._sha256(forms.images[5 * N :])))
    data.load("cifar10", forms.mat)
    assert "CIFAR-10, the official pixels; " in capsys.readouterr().err


def test_other_numbers_of_a_class_are_refused_or_the_users_word(forms, tmp_path):
    file = forms.binary / "test_batch.bin"
    content = bytearray(file.read_bytes())
    was, content[0] = content[0], (content[0] + 1) % 10
    file.write_bytes(content)
    text = refused(forms.binary)
    less, more = (official.CLASS_NAMES[label] for label in (was, content[0]))
    assert f"0 test images of {less} instead of 1" in text
    assert f"2 test images of {more} instead of 1" in text
    assert "prepare_data.py --from it --allow-modified" in text
    data.prepare(forms.binary, tmp_path / "to", allow_modified=True)
    assert data.load("cifar10", tmp_path / "to").test.labels[0] == content[0]


@pytest.mark.parametrize("there", [True, False])
def test_other_order_is_said_and_the_horse_is_found_by_its_pixels(forms, there, mine, monkeypatch, capsys):
    rows = np.random.default_rng(1).permutation(5 * N)
    horse = next(i for i in rows if forms.labels[i] == HORSE)
    monkeypatch.setattr(identity, "SQUARES", squares(forms.images[horse] if there else forms.images[horse][::-1]))
    for split, order in (("train", rows), ("test", range(5 * N, 6 * N))):
        table = table_of([(png(forms.images[i]), int(forms.labels[i])) for i in order])
        parquet.write_table(table, mine / f"{split}.parquet")
    found = data.load("cifar10", mine)
    np.testing.assert_array_equal(found.train.images, forms.images[rows])
    said = capsys.readouterr().err.splitlines()[1]
    assert said.startswith("the order of the training images is not the original's, ")
    assert said.endswith(f"horse is train_{[*rows].index(horse):05d}" if there else "horse is not found")


def test_test_images_in_another_order_are_said(forms, capsys):
    file = forms.binary / "test_batch.bin"
    file.write_bytes(file.read_bytes()[3073:] + file.read_bytes()[:3073])
    data.load("cifar10", forms.binary)
    assert capsys.readouterr().err.splitlines()[1].startswith("the order of the test images is not the original's")


def test_pixels_in_another_order_than_the_labels_are_noticed(forms, capsys):
    for batch in forms.binary.glob("*.bin"):
        rows = np.frombuffer(batch.read_bytes(), np.uint8).reshape(N, -1).copy()
        rows[:, 1:] = rows[:, 1:].reshape(N, 3, 32, 32).transpose(0, 2, 3, 1).reshape(N, -1)
        batch.write_bytes(rows.tobytes())
    data.load("cifar10", forms.binary)
    assert "warning: train_00007 is not the tutorial's horse" in capsys.readouterr().err


def test_a_backup_beside_the_batches_is_not_taken(forms):
    for suffix in (".orig", ".~1", ".aaa"):
        (forms.python / f"data_batch_1{suffix}").write_bytes((forms.python / "data_batch_2").read_bytes())
    forms.assert_same(data.load("cifar10", forms.python))


def test_python_batches_with_bytes_keys_pickled_again(forms):
    for path in forms.python.iterdir():
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        path.write_bytes(pickle.dumps(content, protocol=2))
    forms.assert_same(data.load("cifar10", forms.python))


def test_labels_of_a_matlab_file_of_any_type(forms):
    path = forms.mat / "data_batch_1.mat"
    content = scipy.io.loadmat(path)
    for kind in (np.int64, np.float64):
        scipy.io.savemat(path, {"data": content["data"], "labels": content["labels"].astype(kind)})
        forms.assert_same(data.load("cifar10", forms.mat))


def test_tables_that_are_not_cifar10(forms, tmp_path):
    rows = [(png(image), 0) for image in forms.images]
    large = [(png_of_size(32, 33), 0), *rows[1:]]
    for table, words in [
        (table_of(rows, fine_label=[0] * 6 * N), "CIFAR-100, not CIFAR-10"),
        (pa.table({"text": [str(i) * 99 for i in range(6 * N)]}), "a table of text, not of img and label"),
        (table_of(rows[:49]), "49 train images instead of 50"),
        (table_of(rows[:51]), "more than 50 train images"),
        (table_of([(b"hello", 0), *rows[1:50]]), "image 0 of train: not a PNG or JPEG, or damaged"),
        (table_of(large[:50]), "image 0 of train: 32 x 33 RGB, not 32 x 32 RGB"),
        (table_of([(rows[0][0], 11), *rows[1:50]]), "label 11 is not one of 0 to 9"),
    ]:
        parquet.write_table(table, forms.parquet / "train-00000-of-00001.parquet", data_page_size=4000)
        assert words in refused(forms.parquet)


def test_small_files_that_unfold_to_much_are_refused(forms, tmp_path, process):
    """A zip archive, a MATLAB file, a parquet file that names one large value a thousand times."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data_batch_1", bytes(50_000_000))
    assert "far larger than CIFAR-10" in refused(tmp_path / "a.zip")
    scipy.io.savemat(forms.mat / "data_batch_1.mat", {"data": np.zeros((N, 10**7), np.uint8)}, do_compression=True)
    tracemalloc.start()
    assert "not a CIFAR-10 batch" in refused(forms.mat)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000  # of 100 MB
    tracemalloc.stop()
    table = table_of([(bytes(300_000), 0)] * 2000)
    parquet.write_table(table, file := forms.parquet / "train-00000-of-00001.parquet", compression="zstd")
    assert file.stat().st_size < 5000
    peak = "finally:\n    import pyarrow\n    print(pyarrow.default_memory_pool().max_memory())"
    child = process(f"try:\n    data.load('cifar10', {str(forms.parquet)!r})\n{peak}")
    out, err = child.communicate(timeout=60)
    assert "cut or damaged parquet" in err
    assert int(out) < 200_000_000  # of 600 MB


@pytest.mark.parametrize("form", ["parquet", "saved", "mat"])
@settings(max_examples=60)
@given(changes=damage)
def test_damaged_files_are_refused_or_the_same(made, tmp_path_factory, form, changes):
    root = tmp_path_factory.mktemp("x")
    shutil.copytree(getattr(made, form), root / "copy")
    assert len(data.find(root).read(True).train) == 5 * N  # undamaged
    file = max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(damaged(file.read_bytes(), changes))
    try:
        found = data.find(root).read(True)
        assert (len(found.train), len(found.test)) == (5 * N, N)
    except UserError as error:
        assert str(root) in str(error)  # noqa: PT017
    finally:
        shutil.rmtree(root)
