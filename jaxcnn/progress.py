"""Progress on standard error: a bar on a terminal, lines in a log, nothing for a job of less than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

DELAY = 2.0  # seconds before anything is shown
LOG_INTERVAL = 10.0  # seconds between two lines of a log

Update = Callable[..., None]  # (count, note=""): `count` more are done; `note` is shown after the figures


def say(message: str) -> None:
    """Print a line for the user on standard error, since standard output is for a script's results."""
    print(message, file=sys.stderr, flush=True)


def progress(what: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Update]:
    """Show how far a job is, its rate and the time left, while the context is open; its value is an `Update`.

    what: the job's name.  total: how many units it has, 0 if unknown.  done: how many of them are done already.
    """
    return (_bar if sys.stderr.isatty() else _lines)(what, total, unit, done)


@contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Update]:
    from tqdm import tqdm

    shown = {"unit": f" {unit}", "unit_scale": True, "delay": DELAY, "leave": False, "dynamic_ncols": True}
    with tqdm(desc=what, total=total or None, initial=done, **shown) as bar:

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
            figures = filter(None, [f"{rate:,.0f}/s" if rate > 10 else f"{rate:.1f}/s", left, note])
            say(f"{what}: {done:,}{of_total} {unit}, {', '.join(figures)}")

    yield update
