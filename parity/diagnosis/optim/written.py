"""PyTorch's optimizer, written in optax."""

from typing import Any

import torch

from parity.diagnosis.optim.rates import STEPS
from parity.diagnosis.optim.trial import Trial

NORM = ("optax.stateless(lambda g, _: jax.tree.map(lambda x: x * jnp.minimum(1, {} / "
        "(sum((y**2).sum() for y in jax.tree.leaves(g))**0.5 + 1e-6)), g))")  # fmt: skip
DAMPENED = "optax.scale_by_schedule(lambda step: jnp.where(step == 0, 1, 1 - {}))"
DECAYED = "optax.add_decayed_weights({})"
MATRICES = ", mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)"


def written(
    optimizer: Any, trial: Trial, decays: dict[str, float], clip: tuple[str, float] | None, rate: str
) -> str | None:
    """Write PyTorch's optimizer in optax, with a learning rate or a schedule; None if it cannot be said."""
    groups = optimizer.param_groups
    if (
        len({float(g["lr"]) for g in groups}) > 1
        or len({*decays.values()} - {0.0}) > 1
        or (clip and not clip[0])
        or groups[0].get("maximize")
    ):
        return None
    group, decay = groups[0], max(decays.values())
    mask = ""
    if decay and not all(decays.values()):
        axes = {(a.ndim > 1) == bool(d) for a, d in zip(trial.start.values(), decays.values(), strict=True)}
        if axes != {True}:
            return None
        mask = MATRICES
    core = _core(optimizer, rate, group, decay, mask)
    if core is None:
        return None
    chain = []
    if clip:
        limit = f"{clip[1]:.7g}"
        chain.append({"padded": NORM.format(limit), "norm": f"optax.clip_by_global_norm({limit})",
                      "value": f"optax.clip({limit})"}[clip[0]])  # fmt: skip
    if decay and not core[0].startswith("optax.adamw"):
        chain.append(DECAYED.format(f"{decay:.7g}{mask}"))
    chain += core
    known = f"  # as its first {STEPS} steps are" if rate.startswith("lambda") else ""
    return (chain[0] if len(chain) == 1 else f"optax.chain({', '.join(chain)})") + known


def _core(optimizer: Any, rate: str, group: Any, decay: float, mask: str) -> list[str] | None:
    """Write it without clipping, and without what is decayed before."""
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        momentum, dampening = group["momentum"], group["dampening"]
        first = [DAMPENED.format(f"{dampening:.7g}")] if momentum and dampening else []
        return [*first, _call("sgd", rate, group, {"momentum": (momentum, 0), "nesterov": (group["nesterov"], False)})]
    if kind in (torch.optim.Adam, torch.optim.AdamW) and not group["amsgrad"]:
        betas = {"b1": (group["betas"][0], 0.9), "b2": (group["betas"][1], 0.999), "eps": (group["eps"], 1e-8)}
        if group["decoupled_weight_decay"]:
            core = _call("adamw", rate, group, {**betas, "weight_decay": (decay, 1e-4)})
            return [f"{core[:-1]}{mask})"]
        return [_call("adam", rate, group, betas)]
    if kind is torch.optim.RMSprop:
        options = {"decay": (group["alpha"], 0.9), "eps": (group["eps"], 1e-8), "eps_in_sqrt": (False, True),
                   "centered": (group["centered"], False), "momentum": (group["momentum"], 0)}  # fmt: skip
        return [_call("rmsprop", rate, group, options)]
    if kind is torch.optim.Adagrad and not group["lr_decay"]:
        # optax adds epsilon inside the root: with PyTorch's 1e-10 outside it, none is nearest
        start = (group["initial_accumulator_value"], 0.1)
        return [_call("adagrad", rate, group, {"initial_accumulator_value": start, "eps": (0, 1e-7)})]
    return None


def _call(name: str, rate: str, group: Any, options: dict[str, tuple[Any, Any]]) -> str:
    given = [f"{n}={x if isinstance(x, bool) else f'{x:.7g}'}" for n, (x, usual) in options.items() if x != usual]
    return f"optax.{name}({', '.join([rate, *given])})"
