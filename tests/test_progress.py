"""What a log and a terminal see of something that takes long."""

import io
import sys
import time

from jaxcnn import progress as module


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def count(monkeypatch, stream, seconds: float) -> str:
    """Five steps of 100 images, each so many seconds long by the module's clock (tqdm has its own)."""
    clock = [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with module.progress("reading x", 600, "images", done=100) as update:
        for _ in range(5):
            clock[0] += seconds
            update(100, "loss 1")
    return stream.getvalue()


def test_log_has_a_line_each_ten_seconds(monkeypatch):
    assert count(monkeypatch, io.StringIO(), 4).splitlines() == [
        "reading x: 200 of 600 images, 25/s, 16 s left, loss 1",
        "reading x: 500 of 600 images, 25/s, 4 s left, loss 1",
    ]


def test_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(module, "DELAY", 1e-9)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with module.progress("reading x", 600, "images") as update:
        time.sleep(0.2)  # tqdm draws ten times a second at most
        update(300)
    assert "\rreading x:  50%" in sys.stderr.getvalue()
    assert "\n" not in sys.stderr.getvalue()


def test_nothing_is_said_of_what_is_over_in_two_seconds(monkeypatch):
    assert count(monkeypatch, io.StringIO(), 0.3) == ""
    assert count(monkeypatch, Terminal(), 0).strip() == ""
