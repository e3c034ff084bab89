"""Real processes on loopback: the same training as in one, and an end in seconds where one is lost."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxcnn import checkpoints
from jaxcnn.config import read_config
from tests.conftest import ROOT
from tests.peer import narrow
from tests.test_faults import newest_step
from tests.test_fit import final_state, run_fit, without_time
from tests.test_sharding import assert_same_trajectories, on_one_device

PROGRESS = r"(epoch .* images.*\n)*"  # on a machine that has other things to do
LOST = PROGRESS + r"error: another process ended or cannot be reached \(.*\): .*\n"
LIMIT = 120  # seconds, many more than are needed: for a machine that has other things to do

LONG = pytest.mark.soak  # several processes on two cores: of each kind, one test is in the suite


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Peer:
    """A process in a directory of its own: processes share no file system."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run = folder, folder / "runs/digits"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") or "CACHE" in k}
        quickly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half of a process's time is compilation
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.peer", *map(str, arguments)], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**clean, **quickly, **environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def wait_for(self, start: str) -> None:
        for line in self.process.stdout:
            if line.startswith(start):
                return
        pytest.fail(self.process.stderr.read())

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err


@pytest.fixture
def peer():
    """Start a process; whatever the test does, none outlives it."""
    started = []

    def start(*arguments, **environment):
        started.append(Peer(*arguments, **environment))
        return started[-1]

    yield start
    for some in started:
        some.process.kill()
        some.process.communicate()


@pytest.fixture
def peers(peer, tmp_path):
    """Start the processes of a job, each in its own folder, some of them with flags or faults of their own."""

    def start(count, *arguments, faults=(), more=()):
        address, own = f"127.0.0.1:{free_port()}", []
        for i in range(count):
            flags = ("--coordinator", address, "--num-processes", count, "--process-id", i, *arguments)
            own.append(peer(tmp_path / str(i), "train", dict(faults).get(i, "none"), *flags, *dict(more).get(i, ())))
        return own

    return start


def assert_ends_like_one_process(run, dataset, tmp_path, epochs):
    """Go on with the run in this process, on one device, and compare with a run that knew no other process."""
    config = dataclasses.replace(read_config(run / "config.json"), epochs=epochs)
    history, _ = run_fit(config, dataset, run)
    whole, _ = run_fit(config, dataset, tmp_path / "whole")
    for found, expected in zip(without_time(history), without_time(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for a, b in zip(final_state(run, config).params.values(), final_state(tmp_path / "whole", config).params.values(),
                    strict=True):  # fmt: skip
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=LONG)])
def test_many_processes_take_the_same_steps_and_one_goes_on(peer, dataset, tmp_path, processes, devices):
    address, path = f"127.0.0.1:{free_port()}", tmp_path / "found.npz"
    some = [peer(tmp_path / str(i), "trajectory", devices, path, address, processes, i) for i in range(processes)]
    assert [each.end() for each in some] == [(0, "", "")] * processes
    with np.load(path) as found:
        assert_same_trajectories(found, on_one_device())
    assert not any(list(each.folder.iterdir()) for each in some[1:])
    assert_ends_like_one_process(tmp_path / "0/run", dataset, tmp_path, epochs=2)


def slurm(process: int, port: int) -> dict[str, str]:
    """What Slurm tells each process of a job step of two on this machine."""
    step = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2", "PROCID": process, "LOCALID": process}
    return {"JAX_COORDINATOR_PORT": str(port)} | {f"SLURM_{name}": str(value) for name, value in step.items()}


@LONG
def test_ctrl_c_in_one_of_two_of_slurm_s_that_went_on_from_one(peer, dataset, tmp_path):
    run_fit(narrow(epochs=1), dataset, tmp_path / "0/runs/digits")
    port, flags = free_port(), ["--coordinator", "auto", "--resume", "--epochs", 200]
    two = [peer(tmp_path / str(i), "train", "slow", *flags, **slurm(i, port)) for i in range(2)]
    two[0].wait_for("epoch  2/200")
    two[1].process.send_signal(signal.SIGINT)
    start = time.monotonic()
    ends = [peer.end() for peer in two]
    assert time.monotonic() - start < 10
    assert [status for status, _, _ in ends] == [130, 130], ends
    assert ends[0][2].count("SIGINT: saved") == 1
    assert "Gloo" not in ends[0][1]
    assert ends[1][1:] == ("", "")
    assert newest_step(two[0].run) >= 6
    assert_ends_like_one_process(two[0].run, dataset, tmp_path, epochs=newest_step(two[0].run) // 3 + 2)


def test_a_finished_run_ends_well_in_every_process(peers, dataset, tmp_path):
    run_fit(narrow(epochs=1), dataset, tmp_path / "0/runs/digits")
    (first, said, _), second = [each.end() for each in peers(2, "--resume")]
    assert first == 0
    assert "already trained for 1 epochs" in said
    assert second == (0, "", "")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=LONG)])
def test_a_killed_process_ends_the_others(peers, dataset, tmp_path, victim):
    two = peers(2, "--epochs", 200, faults={0: "slow", 1: "slow"})
    two[0].wait_for("epoch  1/200")
    two[victim].process.kill()
    start = time.monotonic()
    status, _, err = two[1 - victim].end()
    assert time.monotonic() - start < 10
    assert status == 2
    assert re.fullmatch(LOST, err), err
    assert newest_step(two[0].run) >= 3
    assert_ends_like_one_process(two[0].run, dataset, tmp_path, epochs=newest_step(two[0].run) // 3 + 1)


@LONG
@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_process_ends_the_others(peers, victim):
    """As where a machine loses its network: no connection is closed, heartbeats stay out."""
    two = peers(2, "--epochs", 200, faults={0: "slow", 1: "slow"})
    two[0].wait_for("epoch  1/200")
    two[victim].process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    status, _, err = two[1 - victim].end()
    assert time.monotonic() - start < 20
    assert status == 2
    assert re.fullmatch(LOST, err), err
    assert checkpoints.saved(two[0].run / "checkpoints")


@LONG
def test_who_never_comes_is_noticed(peer, tmp_path):
    """A wrong address, a peer that does not start, a port that is taken, no cluster: each on its own, all at once."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        full = f"127.0.0.1:{taken.getsockname()[1]}"
        at, own = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        cases = {
            "wrong address": (f"--coordinator {at} --num-processes 2 --process-id 1", f"not all of 2 .* {at}"),
            "nobody comes": (f"--coordinator {own} --num-processes 2 --process-id 0", f"not all of 2 .* {own}"),
            "port taken": (f"--coordinator {full} --num-processes 2 --process-id 0", "port"),
            "no cluster": ("--coordinator auto", "give HOST:PORT"),
        }  # fmt: skip
        some = {name: peer(tmp_path, "train", "hasty", *flags.split()) for name, (flags, _) in cases.items()}
        for name, each in some.items():
            status, out, err = each.end()
            assert (status, out) == (2, ""), (name, err)
            assert re.fullmatch(rf"error: .*{cases[name][1]}.*\n", err), (name, err)
        assert not list(tmp_path.iterdir())


def test_processes_that_were_given_different_things(peers):
    two = peers(2, more={0: ("--seed", 0), 1: ("--seed", 1)})
    (first, _, lost), (second, _, err) = [peer.end() for peer in two]
    assert (first, second) == (2, 2)
    assert re.fullmatch(LOST, lost), lost
    assert err == "error: process 0 has seed 0, not 1: --seed; give all the same\n"


@LONG
def test_processes_that_have_different_data(peers):
    (first, _, lost), (second, _, err) = [each.end() for each in peers(2, faults={1: "other"})]
    assert (first, second) == (2, 2)
    assert re.fullmatch(LOST, lost), lost
    assert err == "error: another training images than in process 0: process 1; give every process the same\n"
