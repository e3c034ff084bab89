"""Commands whose standard streams are closed, full, broken or of another encoding end as if they were not."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMAND = """
import os, sys
from jaxcnn import cli
from jaxcnn.errors import UserError
def main():
    print("läufe", 1 << 100)
    file = os.open("result", os.O_CREAT | os.O_WRONLY)
    print("späte Zeile", file=sys.stderr)
    os.write(file, b"done")
    print("end")
    if sys.argv[1:] == ["forbidden"]:
        raise PermissionError(13, "Permission denied", "läufe")
    if sys.argv[1:]:
        raise UserError("bad", "läufe", "mend it")
cli.run(main)
"""
RESULT = f"läufe {1 << 100}\nend\n"


def run(folder, redirected="", *, end="", **environment):
    """Run the command in a shell; return its status and both outputs, as far as they are not redirected."""
    (folder / "command.py").write_text(COMMAND)
    line = f'"{sys.executable}" command.py {end} {redirected}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True)
    assert (folder / "result").read_bytes() == b"done"
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", ">&- 2>&-", "0<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error_and_no_file_takes_its_place(tmp_path, closed):
    status, out, err = run(tmp_path, closed)
    assert status == 0, err
    assert out == ("" if ">&-" in closed.split() else RESULT)
    assert err == ("" if "2>&-" in closed else "späte Zeile\n")


def test_what_cannot_be_encoded_is_replaced(tmp_path):
    assert run(tmp_path, PYTHONIOENCODING="ascii") == (0, RESULT.replace("ä", r"\xe4"), r"sp\xe4te Zeile" + "\n")
    status, _, err = run(tmp_path, end="refused", PYTHONIOENCODING="ascii")
    assert (status, err.splitlines()[-1]) == (2, r"error: bad: l\xe4ufe; mend it")


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    assert run(tmp_path, "| true; exit ${PIPESTATUS[0]}") == (0, "", "späte Zeile\n")
    assert run(tmp_path, "2>&1 | true; exit ${PIPESTATUS[0]}", end="refused") == (2, "", "")


def test_a_full_disk_under_the_output_is_said(tmp_path):
    status, _, err = run(tmp_path, "> /dev/full")
    assert status == 0
    assert err.splitlines()[-1] == "warning: standard output did not take what was printed (No space left on device)"
    assert run(tmp_path, "2> /dev/full") == (0, RESULT, "")


def test_a_terminal_that_does_not_block_gets_every_line(tmp_path):
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    code = "from jaxcnn import streams; streams.repair(); print('x' * 10**6); print('end')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=theirs) as process:
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            assert pipe.read() == "x" * 10**6 + "\nend\n"
    assert process.returncode == 0


def test_other_ends_are_one_line_too(tmp_path):
    status, _, err = run(tmp_path, end="forbidden")
    assert (status, err.splitlines()[1:]) == (2, ["error: Permission denied: läufe; allow it, or name another"])
    code = "import os, sys; from jaxcnn import cli; os.mkdir('d'); os.chdir('d'); os.rmdir('../d'); cli.run(print)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the current folder is no longer there: cd to one that is\n")
