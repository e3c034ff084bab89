"""Progress on standard error: a bar on a terminal or in a notebook, lines in a log, nothing for less than two seconds.

Nothing here raises because of standard error, which may be closed, broken, absent, or in a limited encoding.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

DELAY = 2.0  # seconds before anything is shown
LOG_INTERVAL = 10.0  # seconds between two lines of a log

Update = Callable[..., None]  # (count, note=""): `count` more are done; `note` is shown after the figures


class _StandardError:
    """The current `sys.stderr`; what cannot be written is lost, and what cannot be encoded is escaped."""

    def write(self, text: str) -> None:
        with suppress(Exception):
            encoding = self.encoding or "utf-8"
            sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with suppress(Exception):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def say(message: str) -> None:
    """Print a line for the user on standard error, since standard output is for a script's results."""
    stream = _StandardError()
    stream.write(message + "\n")  # in one call, since another thread may write, too
    stream.flush()


def progress(what: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Update]:
    """Show a job's progress, rate and time left while the context is open; its value is an `Update`.

    what: the job's name.  total: how many units it has, 0 if unknown.  done: how many of them are done already.
    """
    kind = _kind_of_bar()
    return _bar(kind, what, total, unit, done) if kind else _lines(what, total, unit, done)


def _kind_of_bar() -> Any:
    """Choose tqdm's bar for a terminal or a notebook; None for pipes and logs, which would keep each state of a bar."""
    said = os.environ.get
    if said("TERM") == "dumb" or said("CI", "") not in ("", "false"):
        return None
    with suppress(Exception):
        if sys.stderr.isatty():
            from tqdm import tqdm

            return tqdm
        if "ipykernel.zmqshell" in sys.modules:
            from tqdm import notebook

            return notebook.tqdm if notebook.IProgress else None  # without ipywidgets it would raise
    return None


def _size() -> dict[str, Any]:
    """Let tqdm follow the terminal's size; where that is 0, as in some containers, it would show no bar."""
    with suppress(Exception):
        if not all(os.get_terminal_size(sys.stderr.fileno())):
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


@contextmanager
def _bar(kind: Any, what: str, total: int, unit: str, done: int) -> Iterator[Update]:
    # What matters comes first: a narrow terminal cuts the end off.
    figures = "{percentage:3.0f}% {remaining} left, {rate_noinv_fmt}" if total else "{rate_noinv_fmt}"
    shown = figures + " | {desc} {n_fmt}" + ("/{total_fmt}{postfix} |{bar}|" if total else "{postfix}")
    # Without smoothing the rate is that of the whole job, and the time left does not jump.
    style = {
        "bar_format": shown,
        "unit": f" {unit}",
        "unit_scale": unit == "bytes",
        "smoothing": 0,
        "delay": DELAY,
        "leave": False,
    }
    place = {"file": _StandardError(), **_size()} if kind.__module__ == "tqdm.std" else {}
    with kind(desc=what, total=total or None, initial=done, **style, **place) as bar:

        def update(count: int, note: str = "") -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(count)

        yield update


@contextmanager
def _lines(what: str, total: int, unit: str, done: int) -> Iterator[Update]:
    start, first, due = time.monotonic(), done, DELAY

    def update(count: int, note: str = "") -> None:
        nonlocal done, due
        done += count
        seconds = time.monotonic() - start
        if seconds > due and done != total:
            due = seconds + LOG_INTERVAL
            rate = (done - first) / seconds
            of_total = f" of {total:,}" if total else ""
            left = f"{(total - done) / rate:.0f} s left" if total and rate else ""
            speed = f"{rate:,.0f}/s" if rate > 10 else f"{rate:.1f}/s" if rate > 0.1 else ""
            figures = filter(None, [speed, left, note])
            say(f"{what}: {done:,}{of_total} {unit}, {', '.join(figures)}")

    yield update
