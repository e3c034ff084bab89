"""Progress on standard error: a bar on a terminal, plain lines in a log, silence for what is over in two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

DELAY = 2.0  # seconds before anything is shown
LOG_INTERVAL = 10.0  # seconds between two lines of a log

Update = Callable[..., None]  # (count, note=""): so many more are done; the note stands behind the figures


def say(message: str) -> None:
    """One line for the user, on standard error so that standard output stays a script's own."""
    print(message, file=sys.stderr, flush=True)


def progress(what: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Update]:
    """Show how a job `what` gets on with its `total` things (0: how many is unknown): speed, and time left."""
    return (_bar if sys.stderr.isatty() else _lines)(what, total, unit, done)


@contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Update]:
    from tqdm import tqdm

    with tqdm(
        desc=what, total=total or None, initial=done, unit=f" {unit}", unit_scale=True, delay=DELAY, leave=False,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip

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
            left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
            of = f" of {total:,}" if total else ""
            say(f"{what}: {done:,}{of} {unit}, {rate:,.{0 if rate > 10 else 1}f}/s{left}{note and ', '}{note}")

    yield update
