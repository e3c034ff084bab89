"""Kill it, fill its disk, damage its files: what was trained stays, and the end is the end of an untroubled run."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcnn
from jaxcnn import checkpoints, files, fit, train
from jaxcnn.config import read_config
from jaxcnn.errors import UserError
from jaxcnn.recipe import recipe_for
from tests.conftest import ROOT, assert_trees_equal
from tests.test_fit import final_state, run_fit, without_time

EPOCHS = 6


def start(run, epochs=EPOCHS, *faults):
    command = [sys.executable, "-m", "tests.trainee", run, epochs, *faults]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )  # fmt: skip


def finish(run, epochs=EPOCHS, *faults):
    process = start(run, epochs, *faults)
    out, err = process.communicate(timeout=3000 if "watch" in faults else 300)
    return process.returncode, out, err


def newest_step(run: Path) -> int:
    saved = checkpoints.saved(run / "checkpoints")
    return int(re.search(r"\d+", saved[0].stem)[0]) if saved else 0


def metrics_without_time(run):
    return without_time(files.read_json_lines(run / "metrics.jsonl"))


def assert_same_end(run, whole):
    config = read_config(whole / "config.json")
    assert_trees_equal(final_state(run, config), final_state(whole, config))
    assert metrics_without_time(run) == metrics_without_time(whole)
    assert_trees_equal(jaxcnn.load(run).variables, jaxcnn.load(whole).variables)
    assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = finish(run)
    assert status == 0, err
    return run


def kill_at_random_moments(run, whole, kills, seed):
    """SIGKILL `kills` times while it trains, then let it end; each start goes on from the newest checkpoint."""
    rng = random.Random(seed)
    for _ in range(kills):
        before = newest_step(run)
        process = start(run, EPOCHS, "slow")
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 6.0))
        process.kill()
        process.communicate()
        assert newest_step(run) >= before
    status, out, err = finish(run)
    assert status == 0, err
    assert_same_end(run, whole)


def test_killed_at_random_moments(tmp_path, whole):
    kill_at_random_moments(tmp_path / "run", whole, kills=1, seed=0)


@pytest.mark.soak
def test_killed_at_fifty_random_moments(tmp_path, whole):
    for seed in range(10):
        kill_at_random_moments(tmp_path / f"run{seed}", whole, kills=5, seed=seed)


def killed_while_writing(run, whole, fsync):
    status, _, _ = finish(run, EPOCHS, f"fsync:{fsync}")
    assert status == -signal.SIGKILL
    reached = newest_step(run)
    status, out, err = finish(run)
    assert status == 0, err
    assert reached > 0 or fsync < 8
    assert_same_end(run, whole)


@pytest.mark.parametrize("fsync", [pytest.param(9, marks=pytest.mark.soak), 18])
def test_killed_while_writing(tmp_path, whole, fsync):
    """Each file is synced, renamed, and its directory synced: 9 is before a rename, 18 after one."""
    killed_while_writing(tmp_path / "run", whole, fsync)


@pytest.mark.soak
def test_killed_at_every_write(tmp_path, whole):
    for fsync in range(3, 40):
        killed_while_writing(tmp_path / f"run{fsync}", whole, fsync)


@pytest.mark.parametrize(
    ("signum", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak), (signal.SIGTERM, 143)]
)
def test_a_signal_saves(tmp_path, whole, signum, status):
    process = start(tmp_path / "run", EPOCHS, "slow")
    for line in process.stdout:
        if line.startswith("epoch  1"):
            break
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert newest_step(tmp_path / "run") >= 3
    assert finish(tmp_path / "run")[0] == 0
    assert_same_end(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once(config, dataset, tmp_path, monkeypatch):
    def interrupted_twice(*arguments, **more):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("went on after the second Ctrl-C")

    monkeypatch.setattr(fit.Trainer, "steps", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        run_fit(config, dataset, tmp_path / "run")


@pytest.mark.parametrize("limit", [2_000, pytest.param(12_000, marks=pytest.mark.soak)])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, whole, limit):
    """A limit on the size of files: the checkpoint (84 kB at this width) or its sibling cannot be written."""
    run = tmp_path / "run"
    assert finish(run, 2)[0] == 0
    reached = newest_step(run)
    status, _, err = finish(run, EPOCHS, f"size:{limit}")
    assert status == 2
    assert re.fullmatch(r"error: cannot write \(File too large\): .*\n", err), err
    assert newest_step(run) == reached
    assert finish(run)[0] == 0
    assert_same_end(run, whole)


def test_a_run_directory_that_vanishes_is_one_line(tmp_path):
    status, _, err = finish(tmp_path / "run", EPOCHS, "vanish")
    assert status == 2
    assert err.startswith("error: cannot write")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config, dataset):
    run = tmp_path_factory.mktemp("trained") / "run"
    run_fit(config, dataset, run)
    return run


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(config, trained, tmp_path_factory, data):
    newest, before = checkpoints.saved(trained / "checkpoints")
    content = newest.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "truncate", "empty", "garbage"]))
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    other = {"truncate": content[: place // 8], "empty": b"", "garbage": b"PK\3\4" + content[::-1]}
    folder = tmp_path_factory.mktemp("damaged")
    (folder / newest.name).write_bytes(other.get(kind, bytes(damaged)))
    (folder / before.name).write_bytes(before.read_bytes())
    like = train.create_state(recipe_for(config), 0)
    said = []
    state, _ = checkpoints.restore_newest(folder, like, said.append)
    assert int(state.step) == 3
    assert len(said) == 1
    assert newest.name in said[0]
    assert "\n" not in said[0]
    (folder / before.name).write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.restore_newest(folder, like, said.append)


def test_a_checkpoint_whose_checksum_has_lost_its_name_is_damaged(config, trained, tmp_path):
    """One bit of the word sha256: the file is whole but for that, and nobody can know."""
    path = tmp_path / "step_000000006.safetensors"
    content = checkpoints.saved(trained / "checkpoints")[0].read_bytes()
    assert content.count(b'"sha256"') == 1
    path.write_bytes(content.replace(b'"sha256"', b'"sha252"'))
    like = train.create_state(recipe_for(config), 0)
    with pytest.raises(UserError, match="checksum"):
        checkpoints.restore(path, like)


def test_the_newest_two_checkpoints_and_the_best_are_kept(config, trained):
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == ["best.safetensors", "step_000000003.safetensors", "step_000000006.safetensors"]
    lines = files.read_json_lines(trained / "metrics.jsonl")
    best = max(lines, key=lambda line: line["test_accuracy"])
    like = train.create_state(recipe_for(config), 0)
    assert int(checkpoints.restore(trained / "checkpoints/best.safetensors", like)[0].step) == best["step"]


def test_out_of_memory_is_one_line_that_says_what_to_lower(config, dataset, tmp_path, monkeypatch):
    def exhausted(*arguments, **more):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nfor buffers")

    monkeypatch.setattr(fit.Trainer, "steps", exhausted)
    with pytest.raises(UserError, match=r"Out of memory .* 32 images; .* smaller --batch-size") as refused:
        run_fit(config, dataset, tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_half_a_line_of_metrics_is_written_anew(config, dataset, tmp_path):
    history, _ = run_fit(config, dataset, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text()[:-40])
    again, _ = run_fit(config, dataset, tmp_path / "run")
    assert without_time(again) == without_time(history)
    assert metrics_without_time(tmp_path / "run") == without_time(history)


def test_a_clock_that_is_set_back_changes_nothing(config, dataset, tmp_path, monkeypatch):
    whole, _ = run_fit(config, dataset, tmp_path / "whole")
    clock = iter(range(2**31, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    history, _ = run_fit(config, dataset, tmp_path / "run")
    assert without_time(history) == without_time(whole)
    assert all(line["seconds"] > 0 for line in history)


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_state_before(config, dataset, tmp_path):
    import dataclasses

    run_fit(dataclasses.replace(config, epochs=1), dataset, tmp_path / "run")
    wild = dataclasses.replace(config, learning_rate=1e8)
    with pytest.raises(fit.Diverged, match=r"step [456]"):
        run_fit(wild, dataset, tmp_path / "run")
    assert int(final_state(tmp_path / "run", config).step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_state(tmp_path / "run", config)))


def test_going_on_with_a_finished_run_changes_nothing(config, dataset, trained):
    before = metrics_without_time(trained)
    for _ in range(3):
        run_fit(config, dataset, trained)
    assert metrics_without_time(trained) == before


@pytest.mark.soak
def test_thirty_resumes_in_a_row(tmp_path):
    """Stopped by SIGTERM, interrupted and killed by turns, thirty times; the end is that of a run left alone."""
    epochs = 60
    assert finish(tmp_path / "whole", epochs)[0] == 0
    run = tmp_path / "run"
    for turn in range(30):
        before, process = newest_step(run), start(run, epochs, "slow")
        while process.poll() is None and newest_step(run) < before + 4:
            time.sleep(0.01)
        process.send_signal((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[turn % 3])
        process.communicate(timeout=60)
        assert process.returncode == (143, 130, -signal.SIGKILL)[turn % 3]
    assert before < 3 * epochs
    assert finish(run, epochs)[0] == 0
    assert_same_end(run, tmp_path / "whole")


@pytest.mark.soak
def test_two_thousand_epochs_in_flat_memory_and_without_a_handle_left_open(tmp_path):
    """The history, a line an epoch, is kept and drawn: that may cost 10 KB an epoch, where a state has 84.

    Medians of 200 epochs, since what threads hold when one ends differs by some MB.
    """
    status, out, err = finish(tmp_path / "run", 2000, "watch")
    assert status == 0, err
    seen = [(int(kb), int(handles)) for kb, handles in re.findall(r"^watch \d+ (\d+) (\d+)$", out, re.M)]
    memory, handles = np.reshape(seen, (10, 10, 2))[1:].transpose(2, 0, 1)  # past compilation
    medians = np.median(memory, axis=1)
    print(medians, np.unique(handles))
    assert len(np.unique(handles)) == 1
    assert medians[-1] - medians[0] < 10 * 1600
