import dataclasses
import json
import sys

import pytest

from jaxcnn import platform
from jaxcnn.compute import training_pflop
from jaxcnn.config import DEFAULTS, to_json
from jaxcnn.errors import UserError
from jaxcnn.recipe import recipe_for
from tests.conftest import ROOT
from tests.scripts.commands import module

compare = module("compare_runs")


@pytest.fixture
def made(tmp_path):
    """Make a run directory with an accuracy for each of its epochs."""

    def make(name, accuracies, recipe="speedrun", dataset="cifar10", **fields):
        run = tmp_path / name
        run.mkdir()
        config = dataclasses.replace(DEFAULTS[recipe][dataset], **fields)
        (run / "config.json").write_text(to_json(config))
        lines = [{"epoch": n, "step": 50 * n, "test_accuracy": accuracy, "pflop": 0.01 * n}
                 for n, accuracy in enumerate(accuracies, 1)]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make


@pytest.fixture
def compared(monkeypatch, capsys):
    """Run the command, and return what it printed by line."""

    def run(*arguments):
        monkeypatch.setattr(platform, "start", lambda name: None)  # it runs already
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, arguments)])
        compare.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_runs_that_differ_in_their_seed_are_one_line(made, compared, tmp_path):
    runs = [
        made("a", [0.5, 0.7], epochs=2),
        made("b", [0.6, 0.8], epochs=2, seed=1, data_dir="/elsewhere"),
        made("c", [0.3, 0.9, 0.9], recipe="tutorial"),
        made("d", [0.4], epochs=2, batch_size=500),
    ]
    head, *rows = compared(*runs, "--figure", tmp_path / "a.svg")
    assert head.split() == ["recipe", "seeds", "epochs", "PFLOP", "accuracy", "lowest", "to", "highest"]
    assert [" ".join(row.split()) for row in rows] == [
        "speedrun, epochs 2 2 2 0.02 75.00% 70.00% to 80.00%",
        "tutorial 1 3 of 20 0.03 90.00%",
        "speedrun, epochs 2, batch size 500 1 1 of 2 0.01 40.00%",
        f"wrote {tmp_path / 'a.svg'}",
    ]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_seeds_are_compared_after_the_epochs_that_all_have(made, compared):
    _, row = compared(made("a", [0.5, 0.9]), made("b", [0.6], seed=1))
    assert " ".join(row.split()) == "speedrun 2 1 of 14 0.01 55.00% 50.00% to 60.00%"


def test_what_others_reached_stands_beside_cifar10_only(made, compared, monkeypatch, tmp_path):
    seen = {}
    draw = compare.figures.accuracy_by_compute
    monkeypatch.setattr(
        compare.figures, "accuracy_by_compute", lambda *given: seen.update({given[2]: given}) or draw(*given)
    )
    for dataset in "cifar10", "digits":
        compared(made(dataset, [0.5], dataset=dataset), "--figure", tmp_path / "a.png")
    images, digits = (
        seen["CIFAR-10: test accuracy by training compute"],
        seen["digits: test accuracy by training compute"],
    )
    assert list(images[1].values()) == [(0.284, 0.94), (32.3, 0.96)]
    assert all("published, original images" in name for name in images[1])
    assert digits[1] == {}


def test_a_run_of_version_0_1_is_counted(compared):
    run = ROOT / "tests/fixtures/run-0.1"
    config, (first, *_) = compare.read(run)
    images = first["step"] * config.batch_size  # of the one epoch
    assert 1442 <= images < 1442 + config.batch_size  # there are 1,442
    assert first["pflop"] == training_pflop(recipe_for(config), images, 1)
    assert compare.computed(config, {"epoch": 2, "step": 2 * first["step"]}) == pytest.approx(2 * first["pflop"])
    assert compared(run)[1].startswith("tutorial")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "config.json").unlink(), ["no config.json in it", "name a run directory"]),
        (lambda run: (run / "metrics.jsonl").unlink(), ["no epoch has ended", "--resume --out"]),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"epoch": 2, "step": 9, "test_accuracy": 1}\n'),
            ["from the first"],
        ),
        (lambda run: (run / "metrics.jsonl").write_text("half a li"), ["no epoch has ended", "metrics.jsonl"]),
    ],
)
def test_a_run_that_cannot_be_read(made, compared, change, words):
    run = made("a", [0.5])
    change(run)
    with pytest.raises(UserError) as error:
        compared(run)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_runs_that_cannot_be_compared(made, compared, tmp_path):
    run = made("a", [0.5])
    with pytest.raises(UserError, match=r"the same training as .*a, seed 0: .*b; name one of them"):
        compared(run, made("b", [0.6]))
    with pytest.raises(UserError, match=r"a run of digits, where .*a is of cifar10: .*c; compare runs of one data set"):
        compared(run, made("c", [0.6], dataset="digits"))
    with pytest.raises(UserError, match=r"a run of folder /b, where .*d is of folder /a: .*e; compare runs of one"):
        compared(*(made(name, [0.6], dataset="folder", data_dir=where) for name, where in (("d", "/a"), ("e", "/b"))))
    with pytest.raises(UserError, match="suffix"):
        compared(run, "--figure", tmp_path / "a.jpg")


def test_the_command(script, made):
    done = script("compare_runs", made("a", [0.5]), made("b", [0.6], seed=1))
    assert done.returncode == 0, done.stderr
    assert "55.00%" in done.stdout
    assert script("compare_runs", "absent").returncode == 2
