"""A trial of optimizers: both take steps on a few parameters with the same gradients, without any network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxcnn.files import NamedArrays
from parity.diagnosis.optim.changes import Changes, apply, clipping, rate
from parity.pair import QUICK
from parity.table import Entry, Table

NORMS = ((0.02, 40.0, 3.0, 0.3), (5.0, 0.3, 0.002, 20.0))  # of the gradients in each step, drawn twice
SIZE, COUNT = 0.01, 6  # of the parameters: weights are small, so that what is subtracted of them keeps its digits
LARGE = 5_000  # elements: of larger parameters only if there are no others
LEAST = 1e-3  # of the parameters: a smaller update is judged as if of that size


@dataclass(frozen=True)
class Trial:
    """A few parameters: how they lie in Flax, and their gradients."""

    table: Table
    start: NamedArrays  # by PyTorch's names

    @classmethod
    def of(cls, parameters: NamedArrays, table: Table | None = None, every: bool = False) -> "Trial":
        """Take the smallest parameter of each kind (kernel, bias, scale ...), or every one."""
        names = {n: "abcdefgh"[: a.ndim] for n, a in parameters.items()}
        plain = [Entry(n, n.replace(".", "/"), f"{' '.join(x)} -> {' '.join(x)}") for n, x in names.items()]
        fits = [e for e in (table.expanded if table else plain) if e.collection == "params" and not e.adds
                and {*e.names("torch")[0]} <= {*parameters}]  # fmt: skip
        of_size = sorted(fits, key=lambda e: sum(parameters[n].size for n in e.names("torch")[0]))
        kinds: dict[Any, Entry] = {}
        for entry in of_size:
            arrays = [parameters[n] for n in entry.names("torch")[0]]
            if len(kinds) < COUNT and (not kinds or sum(a.size for a in arrays) <= LARGE):
                kinds.setdefault((entry.flax.rpartition("/")[2], arrays[0].ndim), entry)
        rng, chosen = np.random.default_rng(0), Table(tuple(fits if every else kinds.values()))
        return cls(chosen, {n: rng.normal(0, SIZE, parameters[n].shape) for n in chosen.carried})

    @cached_property
    def gradients(self) -> list[list[NamedArrays]]:
        """Draw gradients: some elements far above 1, most tiny, so that clipping and epsilon matter."""
        rng, drawn = np.random.default_rng(1), list[list[NamedArrays]]()
        for norms in NORMS:
            drawn.append([])
            for norm in norms:
                some = {n: rng.normal(0, 1, a.shape) ** 3 for n, a in self.start.items()}
                whole = np.sqrt(sum((g**2).sum() for g in some.values()))
                drawn[-1].append({n: g * (norm / whole) for n, g in some.items()})
        return drawn

    def parts(self, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Give the part of each parameter in updates of all."""
        ends = np.cumsum([a.size for a in self.start.values()])[:-1]
        yield from zip(self.start, np.split(rows, ends, axis=-1), strict=True)

    def scale(self, rows: np.ndarray) -> np.ndarray:
        """Give what each update is measured by: the largest one of its parameter in its step."""
        least = LEAST * max(np.abs(a).max(initial=0) for a in self.start.values())
        sizes = [np.broadcast_to(np.maximum(np.abs(p).max(axis=1, keepdims=True, initial=0), least), p.shape)
                 for _, p in self.parts(rows)]  # fmt: skip
        return np.concatenate(sizes, axis=1)

    def flax(self, optimizer: Any) -> np.ndarray:
        """Take the steps in JAX: each one's updates of the same parameters. [steps, elements]."""
        carry = lambda arrays: jax.tree.map(jnp.asarray, self.table.to_flax(arrays)["params"])  # noqa: E731
        params, update, rows = carry(self.start), jax.jit(optimizer.update, compiler_options=QUICK), []
        for steps in self.gradients:
            state = optimizer.init(params)
            for gradients in steps:
                updates, state = update(carry(gradients), state, params)
                found = self.table.to_torch({"params": jax.tree.map(np.asarray, updates)})
                rows.append(np.concatenate([found[n].ravel() for n in self.start]))
        return np.stack(rows)

    def made(self, make: Callable[..., Any]) -> tuple[dict[str, torch.Tensor], Any]:
        """Make the parameters in PyTorch, and an optimizer of them."""
        p = {n: torch.tensor(a, requires_grad=True) for n, a in self.start.items()}
        return p, make([*p.values()])

    def torch(self, make: Callable[..., Any], changes: Changes, draws: int = len(NORMS)) -> np.ndarray:
        """Take them in PyTorch, with changes of its optimizer; those of the first draws only, if that is enough."""
        rows = []
        for steps in self.gradients[:draws]:
            p, optimizer = self.made(make)
            apply(changes, optimizer, p)
            kind, names, decay = changes.get("decay", ("", (), 0.0))
            for gradients in steps:
                rates = {id(q): rate(g, changes) for g in optimizer.param_groups for q in g["params"]
                         if kind == "decoupled"}  # fmt: skip
                for name, q in p.items():
                    early = decay * self.start[name] if kind == "early" and name in names else 0.0
                    q.grad = torch.from_numpy(gradients[name] + early)
                optimizer.step()
                row = []
                for name, q in p.items():
                    apart = decay * rates.get(id(q), 0.0) if name in names else 0.0
                    row.append((q.numpy(force=True) - (1 + apart) * self.start[name]).ravel())
                    q.data.copy_(torch.from_numpy(self.start[name]))
                rows.append(np.concatenate(row))
        return np.stack(rows)

    def probe(self, make: Callable[..., Any]) -> tuple[Any, dict[str, float]]:
        """Make an optimizer to look at, and say the weight decay of each parameter."""
        p, optimizer = self.made(make)
        decays = {id(q): float(g.get("weight_decay", 0)) for g in optimizer.param_groups for q in g["params"]}
        return optimizer, {name: decays.get(id(q), 0.0) for name, q in p.items()}

    def rates(self, make: Callable[..., Any], steps: int) -> tuple[np.ndarray, float]:
        """List the learning rates of PyTorch's first group, step by step, and the one that it was made with."""
        (p, optimizer), seen = self.made(make), list[float]()
        first = optimizer.param_groups[0]
        for _ in range(steps):
            seen.append(float(first["lr"]))
            for q in p.values():
                q.grad = torch.ones_like(q)
            optimizer.step()
        return np.array(seen), float(first.get("initial_lr", seen[0]))

    def clipped(self, make: Callable[..., Any]) -> tuple[str, float] | None:
        """Say how PyTorch's hooks clip: by the norm, with something added to it or not, or by value, and at what."""
        before, after = [g for steps in self.gradients for g in steps], list[NamedArrays]()
        for gradients in before:
            p, optimizer = self.made(make)
            for name, q in p.items():
                q.grad = torch.tensor(gradients[name])
            optimizer.register_step_pre_hook(
                lambda *_, p=p: after.append({n: q.grad.numpy(force=True).copy() for n, q in p.items()})
            )
            optimizer.step()
        return clipping(before, after)
