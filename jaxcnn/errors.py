"""The one exception that is the user's to mend: scripts print it as one line and exit with 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input or bad usage. Its text is one line: what is wrong, where, and what to do about it."""

    def __init__(self, what: str, where: object, todo: str) -> None:
        super().__init__(" ".join(f"{what}: {where}; {todo}".split()))


@contextmanager
def os_errors(what: str, todo: str, where: object = None) -> Iterator[None]:
    """A UserError in place of an OSError, whose reason takes the place of {} in `what`, and whose file that of None."""
    try:
        yield
    except BrokenPipeError:  # not the file's: whoever read what is printed has seen enough
        raise
    except OSError as error:
        reason = error.strerror or str(error) or repr(error)
        raise UserError(what.format(reason), where or error.filename or "data", todo) from error
