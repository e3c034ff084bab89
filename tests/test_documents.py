"""What the documents say to type can be typed, and what they say to run runs."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, users_environment
from tests.scripts.commands import NAMES, module
from tests.scripts.test_command_lines import parse
from tests.test_fit import run_fit

DOCUMENTS = [*map(ROOT.joinpath, ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/*.md"))]
COMMAND = re.compile(r"python (?:scripts/(\w+)\.py|-m (parity)\b)([^`\n]*)")


def commands(text):
    for script, package, rest in COMMAND.findall(text):
        yield script or package, re.split(r"\s{2,}|#", rest)[0].strip()


def help_texts():
    return [module(name).parser().format_help().partition("\n\n")[2] for name in (*NAMES, "parity")]  # without usage


def test_every_command_in_the_documents_and_in_the_help_is_one():
    texts = [path.read_text() for path in DOCUMENTS] + help_texts()
    found = [command for text in texts for command in commands(text)]
    assert {name for name, _ in found} == {*NAMES, "parity"}
    for name, arguments in found:
        words = arguments.split()
        if words or name not in (
            "evaluate",
            "feature_maps",
            "convert",
            "compare_runs",
        ):  # else the mere name of a command
            status = None if "--help" in words else parse(name, words)[0]
            assert status is None, (name, arguments)


def test_every_make_target_in_the_documents_is_one():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    said = {word for path in DOCUMENTS for word in re.findall(r"\bmake (\w+)", path.read_text())}
    assert {"train", "test", "setup"} <= said
    assert said - targets <= {"it", "of", "the"}


def test_every_link_and_picture_is_there():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("https://") or (path.parent / target).is_file(), (path.name, target)


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


@pytest.mark.parametrize(
    "document", ["README.md", "docs/tutorial.md", "docs/files.md", "docs/ports.md", "docs/porting.md"]
)
def test_python_blocks_run(document, config, dataset, tmp_path):
    """All of a document's blocks, one after another, in a process of their own, beside a small run if they read it."""
    code = "\n".join(blocks(ROOT / document))
    assert code
    if "runs/digits" in code:
        run_fit(config, dataset, tmp_path / "runs/digits")
    # Many small operations, each compiled: 22 s of processor time for 32. The tutorial trains, and computes slower.
    environment = users_environment() | (
        {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")} if "porting" in document else {}
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"tutorial_{name}.png" for name in ("blocks", "conv1", "pool2") if "tutorial" in document}
