"""The exception for problems that the user can fix: scripts print it as one line and exit with status 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input or bad usage. Its text is one line: what is wrong, where, and what to do about it."""

    def __init__(self, what: str, where: object, todo: str) -> None:
        super().__init__(what, where, todo)  # all three, for pickle to rebuild the error
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        return " ".join(f"{self.what}: {self.where}; {self.todo}".split())


@contextmanager
def os_errors(what: str, todo: str, where: object = None) -> Iterator[None]:
    """Raise UserError in place of an OSError, its reason in place of {} in `what`, its file in place of no `where`."""
    try:
        yield
    except BrokenPipeError:  # not a file's fault: the reader of our output has closed it
        raise
    except OSError as error:
        reason = error.strerror or str(error) or repr(error)
        raise UserError(what.format(reason), where or error.filename or "data", todo) from error
