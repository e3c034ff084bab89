"""Preparing: all or nothing, one at a time, and the script."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxcnn import data
from jaxcnn.data import tfds_folder
from jaxcnn.errors import UserError

KILL = "lambda *a, **k: os.kill(os.getpid(), 9)"
AFTER = "import builtins; n = [0]\ndef count(k):\n    n[0] += 1\n    if n[0] == {}: os.kill(os.getpid(), 9)\n"
POINTS = {
    "reading": "batches.parsed = " + KILL,
    "writing": AFTER.format(30) + "import contextlib\ntfds_folder.progress = lambda *a: contextlib.nullcontext(count)",
    "before the rename": "from etils.epath import gpath\ngpath.PosixGPath.rename = gpath.PosixGPath.replace = " + KILL,
    "before the arrays": "storage.save = " + KILL,
    "in the arrays": "storage.np.savez = lambda file, **k: (file.write(b'x'), file.flush(), os.kill(os.getpid(), 9))",
}


def test_killed_anywhere(process, forms, tmp_path):
    """The next start finds all of it or nothing, completes it, and leaves no temporary file."""
    running = {
        point: process(f"{patch}\ndata.prepare({str(forms.python)!r}, {str(tmp_path / point)!r})")
        for point, patch in POINTS.items()
    }
    for point, killed in running.items():
        killed.communicate(timeout=60)
        assert killed.returncode == -9, point
        there = (tmp_path / point / "cifar10/3.0.2").exists()
        assert there == (point in ("before the arrays", "in the arrays")), point
        if not there:
            with pytest.raises(UserError, match="no CIFAR-10 in this folder"):
                data.load("cifar10", tmp_path / point)
        data.prepare(forms.python, tmp_path / point)
        forms.assert_same(data.load("cifar10", tmp_path / point))
        forms.assert_same(tfds_folder.read(tmp_path / point / "cifar10/3.0.2"))
        rest = [p.name for p in (tmp_path / point / "cifar10").iterdir() if p.suffix != ".lock"]
        assert sorted(rest) == [".3.0.2.jaxcnn.npz", "3.0.2"], point


def test_two_at_once(process, forms, tmp_path):
    """The first works. The second says that it waits, and takes the result."""
    slowly = "import contextlib, time\n"
    slowly += "tfds_folder.progress = lambda *a: contextlib.nullcontext(lambda k: time.sleep(0.03))\n"
    prepare = f"print(data.prepare({str(forms.python)!r}, {str(tmp_path / 'to')!r}))"
    first = process(slowly + prepare)
    lock = tmp_path / "to/.cifar10.lock"
    while not lock.exists():
        time.sleep(0.01)
    second = process(prepare)
    outputs = [p.communicate(timeout=60) for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert "waiting" not in outputs[0][1]
    assert "waiting for it" in outputs[1][1]
    assert "already there" in outputs[1][1]
    forms.assert_same(data.load("cifar10", tmp_path / "to"))


def test_earlier_copy_is_left_as_it_is(forms, tmp_path, capsys):
    version = data.prepare(forms.python, tmp_path / "to")

    def stats():
        return {path: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in version.iterdir()}

    before = stats()
    (forms.binary / "data_batch_1.bin").write_bytes(b"bad")
    data.prepare(forms.binary, tmp_path / "to")
    assert f"already there, and left as it is: {version}" in capsys.readouterr().err
    assert stats() == before


def test_failure_leaves_nothing_half_made(forms, tmp_path, monkeypatch):
    (forms.binary / "data_batch_5.bin").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"data_batch_5\.bin"):
        data.prepare(forms.binary, tmp_path / "to")
    monkeypatch.setattr(tfds_folder, "progress", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.prepare(forms.python, tmp_path / "to")
    assert [p.name for p in (tmp_path / "to").rglob("*")] == [".cifar10.lock"]


@pytest.fixture
def command(tmp_path):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        return subprocess.run(
            [sys.executable, "-W", "error", root / "scripts/prepare_data.py", *map(str, arguments)],
            capture_output=True, text=True, cwd=tmp_path, timeout=60,
        )  # fmt: skip

    return run


def test_script(command, forms, tmp_path):
    bad = command("--from", forms.python, "--data-dir", tmp_path / "to")  # ten images a batch are not CIFAR-10
    assert (bad.returncode, bad.stdout) == (2, "")
    lines = bad.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: batch of the wrong size ((10, 3072) with 10 labels instead of 10,000 images): ")
    help_text = command("--help").stdout
    assert all(word in help_text for word in ("--from", "--data-dir", "--mirror", "--allow-modified", "examples:"))
