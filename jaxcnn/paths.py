"""Paths as people write them."""

import os
from pathlib import Path

from jaxcnn.errors import UserError


def at_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with its `~` expanded, which no shell does in `--out=~/run` or in a program."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError("no home folder of this user", path, "write the whole path") from None


def user_cache() -> Path:
    """Return the user's cache folder for this project, which may not exist yet."""
    import platformdirs

    return platformdirs.user_cache_path("jaxcnn", appauthor=False)
