"""Standard streams that cannot fail: no work is lost over a line that nobody can read."""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

READER_GONE = (errno.EPIPE, errno.EIO)  # `| head` has read enough; the terminal is closed
lost: dict[str, OSError] = {}  # by stream, why what was printed there did not arrive


class _Unfailing(io.FileIO):
    """A file descriptor that takes everything as written, also once it cannot be written to."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.name = name

    def write(self, data: Any) -> int:  # bytes or another buffer
        try:
            while (count := super().write(data)) is None:  # non-blocking, as a terminal that Node.js has used
                select.select([], [self], [])
            return count
        except OSError as problem:
            if problem.errno not in READER_GONE:
                lost.setdefault(self.name, problem)
            return len(data)


def unfailing(descriptor: int, name: str) -> TextIO:
    r"""Return a stream on a file descriptor that never fails; what it cannot encode is written as \xe4.

    name: `stdout` or `stderr`: that stream's encoding is used, and `lost` says under this name why output is missing.
    """
    encoding = getattr(getattr(sys, name), "encoding", "utf-8")
    raw = io.BufferedWriter(_Unfailing(descriptor, name))
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)


def repair() -> None:
    """Open the standard streams that are closed, and make both outputs unfailing; a notebook's stay as they are.

    Each line appears as soon as it is printed, in pipes and logs, too.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file to be opened would be the standard output, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if os.name == "nt" and isinstance(stream, io.TextIOWrapper):  # its console takes Unicode in its own way
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        elif stream is None or _descriptor(stream) == descriptor:
            setattr(sys, name, unfailing(descriptor, name))


def _descriptor(stream: Any) -> int | None:  # a notebook may put anything there
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
        return stream.fileno()
    return None
