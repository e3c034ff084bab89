"""Changes of an optimizer of PyTorch that the user's own function made: each makes a classic mistake.

group: settings of all. clip: None, or (norm, padded or value; its limit), in the place of what hooks do before a
step. decay: (coupled, decoupled or early; names; weight decay), in the place of its own; only the first is made here,
the others where the steps are taken. rate: a constant learning rate, in parts of the first. corrected: False for no
bias correction. root: what is added inside the root.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jaxcnn.files import NamedArrays

Changes = Mapping[str, Any]


def apply(changes: Changes, optimizer: Any, p: dict[str, torch.Tensor]) -> None:
    """Change PyTorch's optimizer of these parameters before its first step."""
    if "clip" in changes:
        optimizer._optimizer_step_pre_hooks.clear()
        if changes["clip"] is not None:
            optimizer.register_step_pre_hook(lambda *_: _clip([*p.values()], *changes["clip"]))
    for group in optimizer.param_groups:
        group |= {name: value for name, value in changes.get("group", {}).items() if name in group}
        if "decay" in changes:
            group["weight_decay"] = 0.0
    kind, names, decay = changes.get("decay", ("", (), 0.0))
    if kind == "coupled":
        optimizer.register_step_pre_hook(lambda *_: _decay(p, names, decay))
    if not changes.get("corrected", True):
        for q in p.values():
            moments = {name: torch.zeros_like(q) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
            optimizer.state[q].update(step=torch.tensor(1e9), **moments)
    if "root" in changes:
        _inside_root(optimizer, changes["root"])
    if "rate" in changes:
        _constant(optimizer, changes["rate"])


def rate(group: Mapping[str, Any], changes: Changes) -> float:
    """Give the learning rate of a group in the next step."""
    constant = float(changes.get("rate", 1.0) * group.get("initial_lr", group["lr"]))
    return constant if "rate" in changes else float(group["lr"])


def _decay(p: dict[str, torch.Tensor], names: Any, decay: float) -> None:
    for name in names:
        if (gradient := p[name].grad) is not None:
            gradient.add_(p[name].detach(), alpha=decay)


def _clip(p: list[torch.Tensor], kind: str, limit: float) -> None:
    gradients = [q.grad for q in p if q.grad is not None]
    norm = torch.sqrt(sum(((g**2).sum() for g in gradients), torch.zeros((), dtype=torch.float64)))
    for g in gradients:
        if kind == "value":
            g.clamp_(-limit, limit)
        else:
            g.mul_(torch.clamp(limit / (norm + 1e-6 * (kind == "padded")), max=1.0))


def _inside_root(optimizer: Any, added: float) -> None:
    """Add inside the root of RMSprop, Adagrad or Adam, and no epsilon outside it."""
    for group in optimizer.param_groups:
        group["eps"] = 0.0
        for q in group["params"]:
            if "alpha" not in group and "betas" not in group:
                optimizer.state[q]["sum"].fill_(added)
                continue
            names = ("square_avg", "momentum_buffer", "grad_avg")
            names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if "betas" in group else names
            optimizer.state[q].update(step=torch.tensor(0.0), **{name: torch.zeros_like(q) for name in names})

    def before(*_: Any) -> None:  # v + added / alpha becomes alpha v + added + ...
        for group in optimizer.param_groups:
            for q in group["params"]:
                if "alpha" in group:
                    state = optimizer.state[q]
                    state["square_avg"].add_(added / group["alpha"] - added * bool(state["step"] > 0))
                if "betas" in group:  # it is divided by 1 - beta ** step then
                    state, beta = optimizer.state[q], group["betas"][1]
                    now = float(state["step"])
                    state["exp_avg_sq"].add_(added * ((1 - beta ** (now + 1)) / beta - (1 - beta**now)))

    optimizer.register_step_pre_hook(before)


def _constant(optimizer: Any, part: float) -> None:
    """Hold the learning rates constant, and let a schedule see its own."""
    first = [g.get("initial_lr", g["lr"]) for g in optimizer.param_groups]
    own: list[Any] = []

    def before(*_: Any) -> None:
        own[:] = [g["lr"] for g in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = part * rate

    def after(*_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(before)
    handle = optimizer.register_step_post_hook(after)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # a schedule comes after it


def clipping(before: list[NamedArrays], after: list[NamedArrays]) -> tuple[str, float] | None:
    """Say how gradients were clipped."""
    flat = [np.stack([np.concatenate([g.ravel() for g in step.values()]) for step in some]) for some in (before, after)]
    if np.allclose(flat[0], flat[1], rtol=1e-13, atol=0):
        return None
    norms = [np.linalg.norm(some, axis=1) for some in flat]
    cut = norms[1] < norms[0] * (1 - 1e-13)
    top = np.abs(flat[1][cut]).max(axis=1)
    padded = (norms[1] * (norms[0] + 1e-6) / norms[0])[cut]
    for kind, limits in (("padded", padded), ("norm", norms[1][cut]), ("value", top)):
        if limits.size and np.ptp(limits) <= 1e-12 * limits.max():
            return kind, float(f"{limits[0]:.9g}")
    return "", float("nan")
