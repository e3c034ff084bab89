"""The checker of annotations: beartype, for which an int is a float, as PEP 484 has it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check what is made once: one inside another is made anew in each call, for 0.5 ms, and mypy reads it anyway."""
    return function if "<locals>" in function.__qualname__ else _check(function)
