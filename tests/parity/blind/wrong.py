"""A wrong port, made by changing the text of a right one."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from tests.parity.blind import images, sequences
from tests.parity.pairs import EXAMPLES, Example, seeded

OWN = (
    images.denoiser, images.squeeze, images.separable, images.pyramid,
    sequences.keywords, sequences.mixture, sequences.prenorm, sequences.crossing,
    sequences.counter,
)  # fmt: skip
RIGHT = {**EXAMPLES, **{build.__name__: seeded(build) for build in OWN}}


class Wrong(NamedTuple):
    """A port with mistakes."""

    pair: str
    changes: dict[str, str]  # text of the port, and what it becomes
    findings: tuple[tuple[str, str], ...]  # code, and a part of the layer's path, or "output", "optimizer", "loss"
    options: Mapping[str, Any] = {}  # more keyword arguments of parity.check


def build(wrong: Wrong) -> Example:
    """Make the pair from the changed source of its module."""
    original = inspect.unwrap(RIGHT[wrong.pair])
    source = inspect.getsource(importlib.import_module(original.__module__))
    for text, other in wrong.changes.items():
        assert source.count(text) == 1, f"{source.count(text)} times in {original.__module__}: {text}"
        source = source.replace(text, other)
    module = ModuleType(f"{original.__module__}_wrong")
    sys.modules[module.__name__] = module  # where dataclasses look for their annotations
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    example = seeded(module.__dict__[wrong.pair])()
    return example._replace(options={**example.options, **wrong.options})
