"""Decoded arrays: cached, noticed when stale or damaged, cached elsewhere if the folder cannot be written."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from jaxcnn import data
from jaxcnn.data import identity, storage
from jaxcnn.errors import UserError


@pytest.fixture
def reads(monkeypatch):
    """A list with an item for each time that something was decoded."""
    count = []
    real = identity.identified
    monkeypatch.setattr(identity, "identified", lambda *a: count.append(1) or real(*a))
    return count


@pytest.mark.parametrize("form", ["python", "binary_tar", "tfrecord"])
def test_second_start_decodes_nothing(forms, reads, form, capsys):
    data.load("cifar10", getattr(forms, form))
    out, err = capsys.readouterr()
    assert (
        re.fullmatch(r"CIFAR-10, \w+ the official pixels; sha256 of pixels and labels [0-9a-f]{16}\n", err)
        or form == "binary_tar"
    )
    forms.assert_same(data.load("cifar10", getattr(forms, form)))
    assert len(reads) == 1
    assert (out, capsys.readouterr()) == ("", ("", ""))


def test_prepared_folder_is_decoded_already(forms, reads, tmp_path):
    data.prepare(forms.binary, tmp_path / "to")
    forms.assert_same(data.load("cifar10", tmp_path / "to"))
    assert len(reads) == 1


def test_stale_arrays_are_decoded_again(forms, reads, capsys):
    data.load("cifar10", forms.binary)
    file = forms.binary / "data_batch_1.bin"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    forms.assert_same(data.load("cifar10", forms.binary))
    assert len(reads) == 2
    assert "older than the data set" in capsys.readouterr().err
    file.unlink()
    with pytest.raises(UserError, match="batch missing: data_batch_1"):
        data.load("cifar10", forms.binary)


def test_damaged_arrays_are_noticed_wherever_the_damage_is(forms, reads, capsys):
    """A flipped bit at any of 40 places changes no array that is returned."""
    data.load("cifar10", forms.binary)
    place = storage.beside(forms.binary)
    good = place.read_bytes()
    spots = np.linspace(0, len(good) - 1, 40).astype(int)
    for spot in spots:
        place.write_bytes(good[:spot] + bytes([good[spot] ^ 0x10]) + good[spot + 1 :])
        forms.assert_same(data.load("cifar10", forms.binary))
    assert len(reads) > 35  # in zip's own unused fields damage does no harm
    for content in (b"", good[: len(good) // 2], b"junk" * 1000):
        place.write_bytes(content)
        forms.assert_same(data.load("cifar10", forms.binary))
    assert f"decoded again: {place}" in capsys.readouterr().err


def test_arrays_of_another_shape_are_not_taken(forms, reads):
    data.load("cifar10", forms.binary)
    with np.load(storage.beside(forms.binary)) as kept:
        arrays = dict(kept)
    np.savez(storage.beside(forms.binary), **{**arrays, "test_images": arrays["test_images"][1:]})
    forms.assert_same(data.load("cifar10", forms.binary))
    assert len(reads) == 2


@pytest.mark.parametrize("form", ["python", "binary_tar", "array_record"])
def test_readonly_folder(forms, reads, readonly, form, capsys):
    home = Path("~").expanduser()
    (home / ".cache").mkdir(parents=True)
    home.chmod(0o777)
    (home / ".cache").chmod(0o777)
    readonly(forms.python_tar.parent)
    for _ in range(2):
        forms.assert_same(data.load("cifar10", getattr(forms, form)))
    assert len(reads) == 1
    assert "Permission denied" in capsys.readouterr().err
    assert [path.suffix for path in (home / ".cache/jaxcnn").glob("*.npz")] == [".npz"]


def test_nowhere_to_keep_them(forms, reads, readonly, capsys):
    home = Path("~").expanduser()
    home.mkdir()
    readonly(home, forms.python_tar.parent)
    for _ in range(2):
        forms.assert_same(data.load("cifar10", forms.python))
    assert len(reads) == 2
    assert capsys.readouterr().err.count("not cached there") == 4


def test_unwritable_target(forms, readonly, tmp_path):
    (tmp_path / "to").mkdir()
    readonly(tmp_path / "to", forms.python)
    with pytest.raises(UserError, match=rf"Permission denied: {tmp_path}/to/.*; check its permissions"):
        data.prepare(forms.python, tmp_path / "to")


def test_unreadable_data(forms, readonly):
    readonly(forms.python, forms.binary)
    os.seteuid(os.getuid())
    (forms.python / "data_batch_1").chmod(0)
    readonly()
    with pytest.raises(UserError, match=r"Permission denied: .*data_batch_1; check"):
        data.load("cifar10", forms.python)


def test_full_disk(forms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        storage.shutil, "disk_usage", lambda path: storage.shutil._ntuple_diskusage(10**9, 10**9, 10**8)
    )
    with pytest.raises(UserError, match=r"100 MB free on the disk, 600 MB needed: .*to; make room"):
        data.prepare(forms.python, tmp_path / "to")
    assert not (tmp_path / "to/cifar10").exists()
    forms.assert_same(data.load("cifar10", forms.python))
    assert "100 MB free" in capsys.readouterr().err
    assert not storage.beside(forms.python).exists()


def test_disk_that_fills_while_arrays_are_written(forms, monkeypatch, capsys):
    def full(file, **arrays):
        assert not storage.beside(forms.python).exists()  # nothing is there before all of it is
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.np, "savez", full)
    forms.assert_same(data.load("cifar10", forms.python))
    assert "cannot be cached (No space left on device)" in capsys.readouterr().err
    assert [p.name for p in forms.python.parent.iterdir() if p.suffix != ".lock"] == [forms.python.name]
