"""Bad batches and archives: any bytes are refused in one line that names the file."""

import gzip
import pickle
import resource
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import data
from jaxcnn.data import batches
from jaxcnn.errors import UserError
from tests.data.forms import N, make_tar, pickled

PIXELS = bytes(3072 * N)
LABELS = [1] * N


def refuse(path: Path, message: str, allow_modified: bool = False) -> None:
    with pytest.raises(UserError, match=message) as caught:
        data.find(path).read(allow_modified)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/jaxcnn-evil"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file, not a CIFAR-10 batch"),
        (b"<html>", "an HTML page, not a CIFAR-10 batch"),
        (pickled(LABELS, PIXELS)[:-100], "not a CIFAR-10 batch, or cut or damaged"),
        (pickled(LABELS[1:], PIXELS), "wrong size.*9 labels instead of 10"),
        (pickled(LABELS, PIXELS[3072:]), r"wrong size \(\(9, 3072\)"),
        (pickled([*LABELS[1:], 17], PIXELS), "label 17 is not one of 0 to 9"),
        (pickled(LABELS, PIXELS, dtype=b"i1"), "not a CIFAR-10 batch"),
        (pickled(LABELS, PIXELS, dtype=b"O8"), "not a CIFAR-10 batch"),
        (pickled(LABELS, PIXELS).replace(b"_reconstruct", b"frombuffer__"), "not a CIFAR-10 batch"),
        (pickle.dumps({b"data": Evil(), b"labels": LABELS}), "not a CIFAR-10 batch"),
        (pickle.dumps({b"data": eval, b"labels": LABELS}), "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 batch"),
    ],
)
def test_bad_python_batch(forms, content, message):
    (forms.python / "data_batch_3").write_bytes(content)
    refuse(forms.python, f"{message}.*data_batch_3; (get another copy|download the file itself)")
    assert not Path("/tmp/jaxcnn-evil").exists()


def test_batch_that_asks_for_memory(forms):
    """LONG_BINPUT with index 2^28: eight bytes that make the C unpickler fill 4 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (forms.python / "test_batch").write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")
    refuse(forms.python, "not a CIFAR-10 batch")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good: good[:-1], "not a CIFAR-10 batch, or cut"),
        (lambda good: good[:-3073], r"wrong size \(\(9, 3072\) with 9 labels instead of 10"),
        (lambda good: good + good[:3073], "wrong size"),
        (lambda good: good * 100, "not a CIFAR-10 batch, or cut|wrong size"),
        (lambda good: b"\x11" + good[1:], "label 17"),
        (lambda good: b"", "wrong size"),
    ],
)
def test_bad_binary_batch(forms, change, message):
    file = forms.binary / "test_batch.bin"
    file.write_bytes(change(file.read_bytes()))
    refuse(forms.binary, f"({message}).*test_batch.bin; ")


@pytest.mark.parametrize("form", ["python", "binary"])
def test_missing_batches(forms, form):
    folder = getattr(forms, form)
    for file in folder.glob("data_batch_[25]*"):
        file.unlink()
    refuse(folder, f"batch missing: data_batch_2, data_batch_5: {folder}")
    refuse(forms.tar(folder.parent / "x.tar.gz", folder), "batch missing: data_batch_2, data_batch_5")


def test_archive_with_another_checksum(forms, tmp_path):
    """What bears an official name has to be that file, or the user's word for it; another is judged by its content."""
    path = make_tar(tmp_path / "cifar-10-binary.tar.gz", {f.name: f.read_bytes() for f in forms.binary.iterdir()})
    forms.assert_same(data.load("cifar10", shutil.copy(path, tmp_path / "mine.tgz")))
    refuse(
        path,
        r"not an official file of CIFAR-10 \(sha256 [0-9a-f]{12}\.\.\., [\d,]+ bytes instead of .*--allow-modified",
    )
    with pytest.raises(UserError, match="not an official"):
        data.prepare(path, tmp_path / "to")
    forms.assert_same(data.find(path).read(True))
    data.prepare(path, tmp_path / "to", allow_modified=True)
    forms.assert_same(data.load("cifar10", tmp_path / "to"))


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    for content, message in [
        (b"<!DOCTYPE HTML><html>404</html>", "an HTML page, not CIFAR-10"),
        (b"PK\x03\x04", "a cut or damaged zip archive, not CIFAR-10"),
        (b"", "an empty file, not CIFAR-10"),
    ]:
        path.write_bytes(content)
        refuse(path, message)
        refuse(path, message, allow_modified=True)


def test_archive_cut_or_with_something_else_inside(forms, tmp_path):
    good = forms.python_tar.read_bytes()
    path = tmp_path / "a.tar.gz"
    for content, message in [
        (good[: len(good) // 2], "cut or damaged archive of"),
        (good[:20], "cut or damaged archive of"),
        (good + b"junk", "cut or damaged archive of"),
        (gzip.compress(b"not a tar" * 100), "cut or damaged archive of"),
        (gzip.compress(b""), "cut or damaged archive of|no CIFAR-10"),
    ]:
        path.write_bytes(content)
        refuse(path, message, allow_modified=True)


def test_archive_that_unfolds_without_end(tmp_path):
    path = make_tar(tmp_path / "bomb.tar.gz", {"readme": bytes(50_000_000)})
    refuse(path, "far larger than CIFAR-10", allow_modified=True)


def test_archive_writes_nothing_anywhere(forms, tmp_path):
    """Members are found by their last name, and only read."""
    batches = {f"../../../{tmp_path}/{f.name}": f.read_bytes() for f in forms.binary.iterdir()}
    path = make_tar(tmp_path / "a.tar.gz", {"/etc/jaxcnn-evil": b"x", "../evil": b"x", **batches})
    before = sorted(tmp_path.rglob("*"))
    forms.assert_same(data.find(path).read(True))
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/jaxcnn-evil").exists()


kinds, places = st.sampled_from(["flip", "cut", "insert", "delete"]), st.floats(0, 1, exclude_max=True)
damage = st.lists(st.tuples(kinds, places, st.integers(0, 255)), min_size=1, max_size=3)


def damaged(good: bytes, changes) -> bytes:
    content = bytearray(good)
    for kind, where, value in changes:
        at = int(where * len(content))
        if kind == "flip" and content:
            content[at] ^= 1 << value % 8
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = bytes([value])
        else:
            del content[at : at + value]
    return bytes(content)


@pytest.mark.parametrize("form", ["python_tar", "binary_tar"])
@settings(max_examples=60)
@given(changes=damage)
def test_damaged_archive_is_refused_or_the_same(made, tmp_path_factory, form, changes):
    path = tmp_path_factory.mktemp("x") / "cifar-10-python.tar.gz"
    path.write_bytes(damaged(getattr(made, form).read_bytes(), changes))
    message = ""
    try:
        made.assert_same(data.find(path).read(True))
    except UserError as error:
        message = str(error)
    finally:
        shutil.rmtree(path.parent)
    assert not message or str(path) in message


@settings(max_examples=200)
@given(changes=damage, content=st.booleans())
def test_damaged_pickle_is_refused_or_a_batch(changes, content):
    """Without a checksum a changed pixel cannot be told; anything but a batch can."""
    good = pickled(LABELS, PIXELS)
    if content:  # leave the opcodes only
        good = good.replace(PIXELS, b"")
    try:
        pixels, labels = batches.parsed(damaged(good, changes), "python", Path("data_batch_1"))
    except UserError:
        pass
    else:
        assert (pixels.shape, labels.shape, labels.max() < 10) == ((N, 3072), (N,), True)
