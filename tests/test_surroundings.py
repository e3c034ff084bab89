"""What a process inherits: an environment, signals, a parent that forked it, a folder that was moved, an odd disk."""

import contextlib
import errno
import io
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest

from jaxcnn import files, fit
from jaxcnn.errors import UserError
from tests.conftest import ROOT
from tests.test_fit import run_fit


def without_descriptor() -> io.TextIOBase:
    return io.StringIO()


def closed() -> io.TextIOBase:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("name", "stderr"), [("SIGINT", without_descriptor), ("SIGTERM", closed), ("SIGHUP", lambda: None)]
)
def test_a_signal_saves_whatever_standard_error_is(config, dataset, tmp_path, monkeypatch, name, stderr):
    """As in a notebook, in a program with windows, under redirect_stderr."""
    signum, steps, stream = getattr(signal, name), fit.Trainer.steps, stderr()

    def interrupted(trainer, state, count):
        state = steps(trainer, state, count)
        if count:  # none while it compiles
            signal.raise_signal(signum)
        return state

    monkeypatch.setattr(fit.Trainer, "steps", interrupted)
    before = signal.signal(signum, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        with contextlib.redirect_stderr(stream), pytest.raises(fit.Interrupted, match=f"^{name}: saved"):
            run_fit(config, dataset, tmp_path / "run")
    finally:
        signal.signal(signum, before)
    assert (tmp_path / "run/checkpoints/step_000000001.safetensors").exists()
    if isinstance(stream, io.StringIO) and not stream.closed:
        assert "stopping after this step" in stream.getvalue()


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with fit.stop_asked() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_is_written_where_a_folder_cannot_be_synced(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(of, number):
        def synced(handle):
            if of(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", synced)

    for of, number in ((stat.S_ISDIR, errno.EINVAL), (stat.S_ISDIR, errno.EIO), (stat.S_ISREG, errno.EINVAL)):
        refuse(of, number)
        files.write_text(tmp_path / "a", f"{number}")
        assert (tmp_path / "a").read_text() == f"{number}"
    refuse(stat.S_ISREG, errno.EIO)
    with pytest.raises(UserError, match="Input/output error"):
        files.write_text(tmp_path / "a", "lost")
    assert (tmp_path / "a").read_text() == f"{errno.EINVAL}"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JAX_PLATFORMS", "gpu", "JAX cannot start on gpu"),
        ("XLA_FLAGS", "--xla_absent=1", "Unknown flag"),
        ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=x", "Couldn't interpret value x"),
    ],
)
def test_a_variable_that_stops_jax_is_named(variable, value, words):
    code = "from jaxcnn import cli, platform; cli.run(lambda: platform.start(None) and 0)"
    environment = {**os.environ, variable: value}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert f"the environment variable {variable}={value}; " in done.stderr


FORK = """
import multiprocessing, warnings
import numpy, jax
from jaxcnn import CNN, UserError, Weights
from jaxcnn.networks import initial_variables
network = CNN(4, 16)
weights = Weights(network, initial_variables(network, jax.random.key(0)))
image = numpy.zeros((1, 32, 32, 3), numpy.uint8)
warnings.simplefilter("ignore")  # JAX's own, on every fork

def child(_):
    try:
        return weights.predict(image).shape
    except UserError as problem:
        return str(problem)

weights.predict(image)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(child, [0]).get(60)[0])
"""


def test_a_forked_process_says_that_it_cannot_use_jax():
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("this process was forked after JAX had started: process ")
    assert done.stdout.endswith("; start processes by multiprocessing.get_context('spawn')\n")


def test_an_environment_that_was_moved_is_made_anew(tmp_path):
    folder = tmp_path / "a clône"
    (folder / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)

    def planned() -> str:
        done = subprocess.run(["make", "-n", "setup"], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout

    assert "-m venv  .venv" in planned()
    (folder / ".venv/.ready").touch()
    (folder / ".venv/pyvenv.cfg").write_text(f"command = /usr/bin/python3 -m venv {folder}/.venv\n", encoding="utf-8")
    assert "venv" not in planned().replace("'setup'", "")
    folder = folder.rename(tmp_path / "elsewhere")
    assert "-m venv --clear .venv" in planned()
