import os
import stat
from pathlib import Path

import pytest

from jaxcnn import files
from jaxcnn.errors import UserError


def test_a_file_is_synced_then_checked_then_renamed_then_its_folder_synced(tmp_path, monkeypatch):
    path, events, fsync, replace = tmp_path / "a", [], os.fsync, Path.replace

    def synced(handle):
        events.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def renamed(source, target):
        events.append("rename")
        return replace(source, target)

    def check(temporary):
        events.append(f"check {temporary.read_text()}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with files.written_whole(path, check) as temporary:
        temporary.write_text("new")
    assert events == ["sync file", "check new", "rename", "sync folder"]


def test_a_file_that_fails_its_check_leaves_the_one_before(tmp_path):
    def check(temporary):
        raise UserError("bad", temporary, "try again")

    (tmp_path / "a").write_text("old")
    with pytest.raises(UserError, match="bad"), files.written_whole(tmp_path / "a", check) as temporary:
        temporary.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_link_stays_one_and_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"
    for name, words in (("", "a folder or a device"), ("-", "standard output"), ("absent/a", "no such folder")):
        with pytest.raises(UserError, match=words):
            files.check_folder(tmp_path / name)
    with pytest.raises(UserError, match="a folder or a device"):
        files.check_folder(Path("/dev/null"))
    files.check_folder(tmp_path / "real")
