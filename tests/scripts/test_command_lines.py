import contextlib
import io
import subprocess
import sys
import sysconfig

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.scripts.commands import NAMES, module

VALUES = st.sampled_from(
    [
        "",
        "0",
        "1",
        "-1",
        "1e400",
        "nan",
        "3.5",
        "9" * 40,
        "all",
        "gpu",
        "cifar10",
        "--",
        "-",
        "=",
        "a\nb",
        "\0",
        "é",
        "run",
    ]
)


# As a shell has it that a notebook started: a backend that is installed there only.
NOTEBOOK = {"MPLBACKEND": "absent"}


def parse(name, arguments):
    """Return the exit status, None if the command line is valid, and what was printed on standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            module(name).parser().parse_args(arguments)
        except SystemExit as end:
            return end.code, errors.getvalue()
    return None, errors.getvalue()


@pytest.mark.parametrize("name", [*NAMES, "parity"])
def test_any_command_line_is_taken_or_refused_in_one_line(name):
    options = [option for action in module(name).parser()._actions for option in action.option_strings]
    words = st.sampled_from(options) | VALUES | st.sampled_from(options).map(lambda o: o[:-1]) | st.text(max_size=8)

    @settings(max_examples=60)
    @given(st.lists(words, max_size=6))
    @example(["--help"])
    @example(["--hlep"])
    def check(arguments):
        status, said = parse(name, arguments)
        if status == 2:
            assert said.startswith("error: ")
            assert said.count("\n") == 1
        else:
            assert (status, said) in ((None, ""), (0, ""))

    check()


@pytest.mark.parametrize("name", [*NAMES, "parity"])
def test_the_nearest_flag_is_offered(name):
    status, said = parse(name, ["--data-dri" if name not in ("convert", "benchmark", "compare_runs") else "--hlep"])
    assert status == 2
    assert "did you mean --data-dir?" in said or "did you mean --help?" in said or "required" in said


@pytest.mark.parametrize("name", NAMES)
def test_a_checkout_needs_no_installation(name, tmp_path):
    """From another folder, with the dependencies only: `-S` leaves out what an editable installation adds."""
    packages = sysconfig.get_paths()["purelib"]
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "scripts" / f"{name}.py", "--help"],
        cwd=tmp_path, env={"PYTHONPATH": packages, **NOTEBOOK}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
