"""What a process inherits: an environment, signals, a parent that forked it, a folder that was moved, an odd disk."""

import contextlib
import dataclasses
import errno
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn import files, fit, platform
from jaxcnn.errors import UserError
from tests.conftest import ROOT
from tests.test_fit import run_fit


def closed() -> io.TextIOBase:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(("name", "stderr"), [("SIGINT", io.StringIO), ("SIGTERM", closed), ("SIGHUP", lambda: None)])
def test_a_signal_saves_whatever_standard_error_is(config, dataset, tmp_path, monkeypatch, name, stderr):
    """As in a notebook, in a program with windows, under redirect_stderr."""
    signum, steps, stream = getattr(signal, name), fit.Trainer.steps, stderr()

    def interrupted(trainer, state, count):
        state = steps(trainer, state, count)
        if count:  # none while it compiles
            signal.raise_signal(signum)
        return state

    monkeypatch.setattr(fit.Trainer, "steps", interrupted)
    with contextlib.redirect_stderr(stream), pytest.raises(fit.Interrupted, match=f"^{name}: saved"):
        run_fit(config, dataset, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/step_000000001.safetensors").exists()
    if isinstance(stream, io.StringIO) and not stream.closed:
        assert "stopping after this step" in stream.getvalue()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_a_parent_has_made_ignored_stays_so(name):
    signum = getattr(signal, name)
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with fit.stop_asked() as asked:
            signal.raise_signal(signum)
            assert not asked
    finally:
        signal.signal(signum, before)


def test_a_signal_while_it_compiles_is_noted(config, dataset, tmp_path, monkeypatch):
    start = fit._start

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        return start(*given)

    monkeypatch.setattr(fit, "_start", interrupted)
    with pytest.raises(fit.Interrupted):
        run_fit(config, dataset, tmp_path / "run")
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(config, dataset, tmp_path):
    run_fit(dataclasses.replace(config, epochs=1), dataset, tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    for path in (tmp_path / "run/checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint of a run that has metrics"):
        run_fit(config, dataset, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


WORKER = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jaxcnn import cli
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), cli.begin_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_a_worker_ends_with_its_parent_however_that_ends(tmp_path):
    (tmp_path / "pool.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], env=environment, stdout=subprocess.PIPE) as process:
        worker = int(process.stdout.readline())
        ignored = re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{worker}/status").read_text())
        assert int(ignored[1], 16) & 1 << signal.SIGINT - 1  # which is the parent's alone
        process.kill()
        process.communicate(timeout=60)  # which ends once no process holds the pipe


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


CACHE = """
import sys
from pathlib import Path
import jax
from jaxcnn import platform
if sys.argv[1:]:
    platform.CPUINFO = Path(sys.argv[1])
platform.start("cpu")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1)
print(jax.config.jax_compilation_cache_dir)
"""


def test_compiled_code_is_kept_for_its_own_kind_of_processor(tmp_path):
    def folder(*cpuinfo, **environment) -> str:
        environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CACHE, *map(str, cpuinfo)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    (tmp_path / "other").write_text("flags : fpu\nflags : fpu\n", encoding="utf-8")
    mine, other = folder(), folder(tmp_path / "other")
    assert Path(mine).parent == Path(other).parent == tmp_path / "cache/jaxcnn/compiled"
    assert mine != other
    assert list(Path(mine).iterdir())
    assert folder(tmp_path / "absent") == "None"  # what it runs on is not known
    assert folder(XDG_CACHE_HOME="/proc/none") == "None"
    assert folder(JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("asked", ["", "true"])
def test_a_cpu_computes_in_the_thread_that_asks_unless_the_user_wants_otherwise(asked):
    value = f"jax.config.values[{platform.ASYNC!r}]"
    code = f"import jax; from jaxcnn import platform; platform.start('cpu'); print({value})"
    environment = os.environ | ({platform.ASYNC.upper(): asked} if asked else {})
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(asked == "true"), done.stderr


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
