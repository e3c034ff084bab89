"""A cause: a mistake that a Flax port may have, and how PyTorch makes the same mistake."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, permutations
from typing import Any, NamedTuple

import numpy as np
import torch

from parity.diagnosis.tape import SLOW, Change, Edit, Op


class Cause(NamedTuple):
    """One mistake; `{x}` in its text is the number that was solved for."""

    code: str
    text: str  # what Flax does, and PyTorch
    repair: str
    change: Change | Callable[..., Change]
    starts: tuple[float, ...] = ()  # where the search for the number begins; none if there is no number
    layer: str = ""  # of PyTorch, if it is not the one that differs


class Place(NamedTuple):
    """Where the two sides differ, with what causes need to know."""

    framework: str  # `nn` or `nnx`
    shape: tuple[int, ...]  # of Flax's array
    attention: bool  # a softmax of products lies here
    ops: Mapping[Any, Op]  # that may be the cause
    held: Mapping[Any, torch.Tensor]  # what layers were fed to give, and the inputs
    spare: Mapping[str, np.ndarray]  # Flax's arrays without a counterpart, with their initial values
    layer: bool  # in a layer, not between layers
    embeddings: frozenset[Any] = frozenset()  # calls whose output is one


Causes = Iterator[Cause]


def apart(op: Op, ops: Mapping[Any, Op]) -> bool:
    """Tell if an operation depends only on inputs and constants, not on any layer."""
    seen, queue = set[Any](), [op]
    while queue:
        now = queue.pop()
        for source in now.sources - seen:
            seen.add(source)
            known = ops.get(source)
            if known is None or known.kind in SLOW:
                if isinstance(source, str) and source.startswith("input "):
                    continue
                return False
            queue.append(known)
    return True


def edited(op: Op, edit: Edit) -> Change:
    """Change one operation."""
    return Change(ops={op.key: edit})


def altered(op: Op, **changes: Any) -> Change:
    """Change arguments of one operation."""
    return edited(op, lambda now: now.compute(**changes))


def skipped(op: Op) -> Change:
    """Leave an operation out."""
    return edited(op, lambda now: now.input.clone())


def solved(op: Op, name: str) -> Callable[[float], Change]:
    """Change one argument to a number that is solved for."""
    return lambda x: altered(op, **{name: x})


def orders(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """List the other orders of some items."""
    return islice(permutations(items), 1, None)  # the first is the items' own


def as_torch(kernel: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Convert a Flax kernel, with inputs and outputs last, to PyTorch's layout, with outputs and inputs first."""
    return torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()).to(dtype)


def numbers(*values: Any) -> str:
    """Write a tuple as it is typed in code."""
    return f"({', '.join(str(value) for value in values)}{',' * (len(values) == 1)})"


def is_parameter(tensor: Any) -> bool:
    """Tell if a tensor is small enough to be a bias or a scale: one axis has a size, at most."""
    return isinstance(tensor, torch.Tensor) and sum(n > 1 for n in tensor.shape) <= 1
