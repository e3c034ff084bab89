"""Mistakes that can be made in an optimizer: what makes them in PyTorch's, and how they are said."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from parity.bounds import agrees
from parity.diagnosis.optim.changes import Changes
from parity.diagnosis.optim.trial import Trial

MOMENTA, DECAYS = (0.0, 0.9, 0.99, 0.999), (0.0, 1e-2, 1e-4)
EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 0.0)
LIMITS = (1.0, 0.1, 10.0, 0.01)  # one between any two norms of gradients of the first draw
HOW = {"coupled": "added to the gradient", "decoupled": "apart from the gradient",
       "early": "added to the gradient before clipping"}  # fmt: skip


class Cause(NamedTuple):
    """A mistake that can be made in PyTorch's optimizer."""

    code: str
    changes: Callable[[float], Changes]  # that make it
    starts: tuple[float, ...]  # where the number is looked for; none if there is no number
    text: str  # with {x}
    piece: str  # of optax's call, that changes


def causes(probe: Any, clip: tuple[str, float] | None) -> Iterator[Cause]:
    """List the mistakes that can be made in an optimizer of this kind."""
    group, set_to = probe.param_groups[0], lambda name: lambda x: {"group": {name: x}}
    for name, code, starts, words, piece in (
        ("momentum", "momentum", MOMENTA, "momentum", "momentum"),
        ("alpha", "momentum", MOMENTA, "decay (PyTorch's alpha)", "decay"),
        ("dampening", "dampening", MOMENTA, "dampening", "dampening"),
        ("eps", "adam-epsilon", EPSILONS, "epsilon", "eps"),
    ):
        if name in group:
            text = f"Flax uses {words} {{x}}, PyTorch {group[name]:.7g}"
            yield Cause(code, set_to(name), starts, text, f"{piece}={group[name]:.7g}")
    for i, beta in enumerate(group.get("betas", ())):
        changes = lambda x, i=i: {"group": {"betas": (*group["betas"][:i], x, *group["betas"][i + 1 :])}}  # noqa: E731
        text = f"Flax uses b{i + 1} {{x}}, PyTorch beta{i + 1} {beta:.7g}"
        yield Cause("momentum", changes, MOMENTA, text, f"b{i + 1}={beta:.7g}")
    if "nesterov" in group:
        has = ("", "no ") if group["nesterov"] else ("no ", "")
        text = f"Flax uses {has[1]}Nesterov momentum, PyTorch {'does' if group['nesterov'] else 'does not'}"
        toggled = {"group": {"nesterov": not group["nesterov"]}}
        yield Cause("nesterov", lambda x: toggled, (), text, f"nesterov={group['nesterov']}")
    if isinstance(probe, torch.optim.Adam):
        text = "Flax does not correct the bias of its moments, PyTorch does"
        yield Cause("bias-correction", lambda x: {"corrected": False}, (), text, "optax.scale_by_adam(...)")
        text = f"Flax adds {{x}} inside the root, PyTorch epsilon {group['eps']:.7g} outside it"
        yield Cause("adam-epsilon", lambda x: {"root": x}, (group["eps"], *EPSILONS), text, "eps_root=0.0")
    if isinstance(probe, torch.optim.RMSprop | torch.optim.Adagrad):
        text = f"Flax adds {{x}} inside the root, PyTorch epsilon {group['eps']:.7g} outside it"
        usual, piece = group["eps"], "eps_in_sqrt=False"
        if isinstance(probe, torch.optim.Adagrad):
            usual, piece = 0.1 + 1e-7, "initial_accumulator_value=0"
            text += f", with a first sum of {group['initial_accumulator_value']:.7g} (initial_accumulator_value)"
        yield Cause("adam-epsilon", lambda x: {"root": usual}, (), text.format(x=f"{usual:.7g}"), piece)
        yield Cause("adam-epsilon", lambda x: {"root": x}, (*EPSILONS[:-1], 0.1), text, piece)
    yield from _clips(clip)


def _clips(clip: tuple[str, float] | None) -> Iterator[Cause]:
    """List other ways to clip."""
    how = {"norm": "the norm of all gradients at {}", "padded": "the norm of all gradients at {} (1e-6 added to it)",
           "value": "each element of the gradients at {}", "": "gradients in a way of its own"}  # fmt: skip
    theirs = "does not clip" if clip is None else f"clips {how[clip[0]].format(f'{clip[1]:.7g}')}"
    if clip is not None:
        yield Cause("clipping", lambda x: {"clip": None}, (), f"Flax does not clip, PyTorch {theirs}", "")
    for kind in ("norm", "value", "padded"):
        text = f"Flax clips {how[kind].format('{x}')}, PyTorch {theirs}"
        starts = tuple(dict.fromkeys((*([clip[1]] if clip and clip[1] > 0 else []), *LIMITS)))
        yield Cause("clipping", lambda x, kind=kind: {"clip": (kind, x)}, starts, text, "")  # type: ignore[misc]


def decay_causes(trial: Trial, decays: Mapping[str, float], clip: Any, truth: np.ndarray, run: Any) -> Iterator[Cause]:
    """List other weight decays: of another size, in another place, of other parameters."""
    value = max(decays.values(), default=0.0)
    chosen = {
        "some parameters": [n for n in decays if decays[n]], "all parameters": [*decays],
        "parameters of two or more axes": [n for n in decays if trial.start[n].ndim > 1],
    }  # fmt: skip
    chosen = {words: names for words, names in [*chosen.items()][::-1] if names}  # the clearest words last
    whose = {tuple(names): words for words, names in reversed(chosen.items())}
    same = next((names for names in whose if names == tuple(n for n in decays if decays[n])), next(iter(whose)))
    ways = [w for w in ("coupled", "decoupled") if value and agrees(run({"decay": (w, same, value)}), truth)]
    way = ways[0] if ways else "coupled"
    for kind in sorted(HOW if clip else [*HOW][:2], key=lambda kind: kind != way):
        for names in sorted(whose, key=lambda names: names != same):
            of = ("", "") if names == same else (f" of {whose[names]}", f" of {whose[same]}" if value else "")
            note = f", {HOW[kind]}" if kind != way or not value else ""
            text = f"Flax uses weight decay {{x}}{of[0]}{note}, PyTorch {value:.7g}{of[1]}"
            text += f", {HOW[way]}" if note and value else ""
            changes = lambda x, kind=kind, names=names: {"decay": (kind, names, x)}  # noqa: E731
            starts = (value, *DECAYS[: 2 if kind == "decoupled" else None])
            yield Cause("weight-decay", changes, starts, text, f"weight_decay={value:.7g}")
