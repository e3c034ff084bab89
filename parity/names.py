"""Names of calls: a module's path, `block/conv`; the second call of the same module is `block/conv#1`."""

from collections.abc import Mapping
from typing import Any


def unique(path: str, calls: Mapping[str, Any]) -> str:
    """Name a call by its module's path, numbered if there was one before."""
    count = sum(name.partition("#")[0] == path for name in calls)
    return f"{path}#{count}" if count else path
