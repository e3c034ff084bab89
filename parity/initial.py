"""Initial weights, drawn anew many times on both sides and compared as distributions."""

from collections.abc import Callable, Iterator
from math import ceil, inf, log, sqrt
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import torch
from scipy.stats import ks_2samp

from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays
from parity.bounds import Check, judge
from parity.given import Given, in_words, lenient
from parity.pair import label
from parity.port import port_of
from parity.table import Entry, Table

DRAWS = 96  # fewer cannot tell a uniform from a normal distribution of the same width in a small layer
ELEMENTS = 20_000  # of a tensor, at most, of all draws together
CHANCE = 1e-6  # that two samples of one distribution are taken for different
CONSTANT = 1e-6  # two constants that are the same
Builders = tuple[Callable[[int], Any], Callable[[int], Any]]  # PyTorch's and Flax's module of a seed


class Drawn(NamedTuple):
    """A tensor's initial values on both sides. [draws, elements]."""

    entry: Entry
    theirs: np.ndarray
    ours: np.ndarray

    @property
    def constant(self) -> bool:
        """Tell if PyTorch's are the same in each draw."""
        return same(self.theirs)


def same(draws: np.ndarray) -> bool:
    """Tell if all draws are the same."""
    return bool((draws == draws[:1]).all())


def draw_initial(builders: Builders, given: Given, table: Table) -> list[Drawn]:
    """Make both modules anew many times. UserError if they cannot be made, or are not those of the table."""
    theirs, ours, port = list[NamedArrays](), list[NamedArrays](), None
    for seed in range(DRAWS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _made(builders[0], seed, "PyTorch")
        if port is None or not isinstance(port.module, nn.Module):  # Linen's draws its weights later
            port = port_of(_made(builders[1], seed, "Flax"), given.cast_flax("float32"), given.flax_kwargs)
        try:
            with lenient():
                state = {name: t.detach().cpu().float().numpy() for name, t in module.state_dict().items()}
                theirs.append(_some(table.to_torch(table.to_flax(state))))  # of two biases, the sum and nothing
                ours.append(_some(table.to_torch(port.initial(seed))))
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            todo = "give functions of a seed that make modules like those that are compared"
            raise UserError(f"it makes no module of this pair: {problem}", "initial=", todo) from problem
    known = {name: entry for name, entry in table.carried.items() if not entry.adds}
    return [
        Drawn(e, np.stack([one[n] for one in theirs]), np.stack([one[n] for one in ours])) for n, e in known.items()
    ]


def _made(build: Callable[[int], Any], seed: int, side: str) -> Any:
    try:
        return build(seed)
    except Exception as problem:
        what = f"it fails: {in_words(problem)}"
        raise UserError(what, f"initial= of {side}", "give a function of a seed that makes the module") from problem


def _some(arrays: NamedArrays) -> NamedArrays:
    """Take some elements of each array, the same of each draw."""
    most, rng = ceil(ELEMENTS / DRAWS), np.random.default_rng(0)
    return {
        n: rng.choice(a.ravel(), most, replace=False) if a.size > most else a.ravel().copy() for n, a in arrays.items()
    }


def initial_checks(drawn: list[Drawn]) -> Iterator[Check]:
    """Compare initial weights: constants must be equal, and distributions as near as chance allows.

    The error of distributions is the Kolmogorov-Smirnov distance: the largest between the shares of elements up to a
    value. If both draw from one distribution, it exceeds the bound with a chance of one in a million.
    """
    for one in drawn:
        place: dict[str, Any] = {"precision": "float64", "link": "initial", "tensor": label(one.entry)}
        if one.constant:
            yield judge(one.ours, one.theirs, bound=CONSTANT, **place)
        elif same(one.ours):
            yield Check(**place, error=inf, bound=0.0, note="Flax's are the same in each draw")
        else:
            n = one.theirs.size
            yield Check(**place, error=float(ks_2samp(one.ours.ravel(), one.theirs.ravel()).statistic),
                        bound=sqrt(-log(CHANCE / 2) / n))  # fmt: skip
