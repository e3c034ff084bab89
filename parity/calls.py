"""What is recorded of a module's run, in either framework: calls, and the random draws of dropout."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """One call of a module."""

    path: str  # of the module, with slashes
    kind: str  # its class
    inputs: dict[str, Any]  # its arrays by place: `0`, `1.hidden`, `mask`
    outputs: dict[str, Any]


class Draw(NamedTuple):
    """One draw of a mask: what a dropout keeps."""

    path: str  # of the module at work
    after: str  # the call that ended last
    keep: float | None  # the chance of each element to be kept; None if nobody said
    mask: Any


class Trace(NamedTuple):
    """Calls in the order in which they end, and draws; a module's second call is named `block/conv#1`."""

    calls: dict[str, Call]
    draws: dict[str, Draw]
    merges: dict[int, set[tuple[int, ...]]] = {}  # noqa: RUF012  how axes became one: its size, and theirs
    unshared: list[str] = []  # noqa: RUF012  modules that draw random numbers other than dropout's

    def inputs(self) -> dict[str, Any]:
        """Give the first array that each call is given, by the call."""
        return OrderedDict((name, next(iter(call.inputs.values()))) for name, call in self.calls.items() if call.inputs)

    def outputs(self) -> dict[str, Any]:
        """Give every array of all calls' outputs: by the call, and by its place in brackets if there are several."""
        return OrderedDict(
            (n, leaf) for name, call in self.calls.items() for n, leaf in bracketed(call.outputs, name).items()
        )


def bracket(name: str, place: str, count: int) -> str:
    """Name one of a value's arrays: `output`, or `output[logits]` if there are several."""
    return name if count == 1 else f"{name}[{place}]"


def bracketed(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Name the arrays of a value."""
    return {bracket(name, place, len(values)): leaf for place, leaf in values.items()}


def as_numpy(array: Any) -> np.ndarray:
    """Give an array of either framework as NumPy's."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def unique(path: str, before: Mapping[str, Any]) -> str:
    """Name a call by its module's path, numbered if there was one before."""
    count = sum(name.partition("#")[0] == path for name in before)
    return f"{path}#{count}" if count else path


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """List the arrays in an argument or an output of any structure, with their places."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if not str(value.dtype).startswith("key<"):  # a key of JAX's random numbers is no array
            yield place or "0", value
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        children: Any = value.items()
    elif isinstance(value, list | tuple):
        children = zip(value._fields, value, strict=True) if hasattr(value, "_fields") else enumerate(value)
    else:
        return
    for key, child in children:
        yield from leaves(child, f"{place}.{key}" if place else str(key))
