"""What a log, a terminal and a notebook see of something that takes long."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios

import pytest
import tqdm.std
from tqdm import notebook

from jaxcnn import progress as module


@pytest.fixture(autouse=True)
def usual_terminal(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def count(monkeypatch, stream, *seconds: float, what: str = "reading x", total: int = 600) -> None:
    """Steps of 100 images, each so many seconds long."""
    clock = [1000.0]
    monkeypatch.setattr(sys, "stderr", stream)
    for place in (module.time, "monotonic"), (tqdm.std, "time"):
        monkeypatch.setattr(*place, lambda: clock[0])
    with module.progress(what, total, "images", done=100) as update:
        for each in seconds:
            clock[0] += each
            update(100, "loss 1")


def lines(monkeypatch, stream) -> list[str]:
    count(monkeypatch, stream, 4, 4, 4, 4, 4)
    return stream.getvalue().splitlines()


LINES = [
    "reading x: 200 of 600 images, 25/s, 16 s left, loss 1",
    "reading x: 500 of 600 images, 25/s, 4 s left, loss 1",
]


def test_log_has_a_line_each_ten_seconds(monkeypatch):
    assert lines(monkeypatch, io.StringIO()) == LINES


def test_a_slow_job_has_no_rate_and_one_without_a_known_end_no_time_left(monkeypatch):
    count(monkeypatch, slow := io.StringIO(), 2000)
    assert slow.getvalue() == "reading x: 200 of 600 images, 8000 s left, loss 1\n"
    count(monkeypatch, endless := io.StringIO(), 10, total=0)
    assert endless.getvalue() == "reading x: 200 images, 10.0/s, loss 1\n"
    count(monkeypatch, bar := Terminal(), 10, total=0)
    assert bar.getvalue().split("\r")[1].strip() == "10.00 images/s | reading x 200, loss 1"


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_terminal_that_takes_no_control_characters_has_those_lines(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert lines(monkeypatch, Terminal()) == LINES


def seen_on_terminal(monkeypatch, rows: int, columns: int, what: str) -> str:
    """What a terminal of that size shows of two steps of 10 and of 1 seconds."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        count(monkeypatch, stream, 10, 1, what=what)
        stream.write(end := "<end>")
        stream.flush()
        seen = ""
        while not seen.endswith(end):  # what was written in pieces may arrive in pieces
            seen += os.read(ours, 10_000).decode()
    os.close(ours)
    return seen.removesuffix(end)


def test_narrow_terminal_has_a_bar_of_one_line_with_the_time_left_by_the_mean_rate(monkeypatch):
    shown = seen_on_terminal(monkeypatch, 24, 40, "reading " + 40 * "x")
    assert [line for line in shown.split("\r") if line.strip()] == [
        " 33% 00:40 left, 10.00 images/s | reading"[:39],
        " 50% 00:16 left, 18.18 images/s | reading"[:39],
    ]
    assert "\n" not in shown


def test_terminal_without_a_size_has_a_bar_too(monkeypatch):
    assert "images/s" in seen_on_terminal(monkeypatch, 0, 0, "reading x")


def test_notebook_has_its_bar_and_lines_without_ipywidgets(monkeypatch):
    made = []

    class Bar(notebook.tqdm):  # as it is in a kernel with ipywidgets, but for the widget
        def __init__(self, **options):
            made.append(options)

        def set_postfix_str(self, text, refresh):
            made.append(text)

        update = close = lambda self, *count: None

    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", module)
    monkeypatch.setattr(notebook, "tqdm", Bar)
    monkeypatch.setattr(notebook, "IProgress", Bar)
    count(monkeypatch, io.StringIO(), 4)
    assert made[0]["total"] == 600
    assert made[1:] == ["loss 1"]
    monkeypatch.setattr(notebook, "IProgress", None)
    assert lines(monkeypatch, io.StringIO()) == LINES


def test_nothing_is_said_of_what_is_over_in_two_seconds(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        count(monkeypatch, stream, 0.3, 0.3, 0.3, 0.3, 0.3)
        assert stream.getvalue().strip() == ""


class Broken(Terminal):
    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_stream_that_is_no_good_stops_nothing(monkeypatch):
    closed, written = io.StringIO(), io.BytesIO()
    closed.close()
    for stream in (None, closed, Broken("x"), io.TextIOWrapper(written, "ascii", write_through=True)):
        monkeypatch.setattr(sys, "stderr", stream)
        module.say("reading é")
        count(monkeypatch, stream, 4, 4, what="reading é")
    assert written.getvalue().decode().splitlines()[0] == r"reading \xe9"
    assert r"reading \xe9: 200 of 600" in written.getvalue().decode()
