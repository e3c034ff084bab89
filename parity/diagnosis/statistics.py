"""Why running statistics differ after one step: how much of the old ones each side keeps."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from jaxcnn.files import NamedArrays
from parity.bounds import FLOAT64_BOUND, agrees
from parity.diagnosis.finding import Finding
from parity.diagnosis.solve import shortest
from parity.matched import Matched

ROUNDING = 100 * FLOAT64_BOUND  # how precisely a batch's statistics are known: they are divided by PyTorch's momentum
LINEN = """class BatchNorm(nn.BatchNorm):  # keeps the unbiased variance, as PyTorch does
    @nn.compact
    def __call__(self, x, use_running_average=None):
        kept = self.momentum * self.get_variable("batch_stats", "var", 0.0)
        y = super().__call__(x, use_running_average)
        if not (self.use_running_average or use_running_average) and not self.is_initializing():
            n = x.size // x.shape[-1]
            new = self.get_variable("batch_stats", "var")
            self.put_variable("batch_stats", "var", kept + (new - kept) * (n / (n - 1)))
        return y
"""
NNX = """class BatchNorm(nnx.BatchNorm):  # keeps the unbiased variance, as PyTorch does
    def __call__(self, x):
        kept = self.momentum * self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            n = x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * (n / (n - 1))
        return y
"""


class Norm(NamedTuple):
    """A batch norm of PyTorch."""

    label: str  # by both names
    momentum: float  # PyTorch's: the share of the new
    values: int  # of each channel in the batch
    unbiased: str = LINEN  # a class that keeps the unbiased variance


def norms(matched: Matched) -> dict[str, Norm]:
    """List PyTorch's own norms with running statistics that are called once, by name."""
    nnx = matched.given.port.framework == "nnx"
    calls, found = matched.traces[0].calls, dict[str, Norm]()
    modules: list[tuple[str, Any]] = [*matched.given.torch_module.named_modules()]
    for name, module in modules:
        call = name.replace(".", "/")
        known = isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.running_var is not None
        if not known or call not in calls or f"{call}#1" in calls:
            continue
        x = next(iter(calls[call].inputs.values()))
        seen = matched.given.random.get(f"{name}.num_batches_tracked".lstrip("."), 0)
        share = 1 / (int(seen) + 1) if module.momentum is None else float(module.momentum)
        label = f"{name} = {matched.pairs[call]}" if call in matched.pairs else name
        found[name] = Norm(label, share, x.numel() // len(module.running_var), NNX if nnx else LINEN)
    return found


def statistic_findings(
    layers: Mapping[str, Norm], start: NamedArrays, theirs: NamedArrays, ours: NamedArrays
) -> list[Finding]:
    """Say why running statistics differ, of states before a step in float64, after PyTorch's and after Flax's."""
    found: list[Finding] = []
    for name, norm in layers.items():
        names = [f"{name}.running_{kind}".lstrip(".") for kind in ("mean", "var")]
        if all(one in side for one in names for side in (start, theirs, ours)) and norm.momentum > 0:
            mean, var = ([side[one] for side in (start, theirs, ours)] for one in names)
            unknown_matters = all(one.code != "running-average" for one in found)  # what is below has other inputs
            found += [one for one in _of(norm, mean, var) if one.code != "unknown" or unknown_matters]
    return found


def _of(norm: Norm, mean: list[np.ndarray], var: list[np.ndarray]) -> Iterator[Finding]:
    """Say why those of a layer differ: each of before, PyTorch's and Flax's."""
    if all(agrees(ours, theirs) for _, theirs, ours in (mean, var)):
        return
    n, own = norm.values, 1 - norm.momentum
    found = Finding("unknown", norm.label, False, _how(mean, var), "")
    if all(np.array_equal(ours, old) for old, _, ours in (mean, var)):
        text = "Flax does not update running statistics in training: use_running_average is fixed to True"
        code, repair = "running-average", "use_running_average=not train"
        yield Finding(code, norm.label, True, text, repair)
        return
    keeps = _kept(mean, norm.momentum, 1.0)
    for biased in (False, True):
        kept = _kept(var, norm.momentum, (n - 1) / n if biased else 1.0)
        if keeps is None or kept is None or abs(keeps - kept) > 1e-6:
            continue
        if not agrees(np.asarray(keeps), np.asarray(own)):
            text = (f"Flax keeps {keeps:.7g} of the running statistics, PyTorch {own:.7g} "
                    f"(its momentum {norm.momentum:.7g})")  # fmt: skip
            code = "batch-norm-momentum"
            yield Finding(code, norm.label, True, text, f"momentum={own:.7g}")
        if biased:
            text = f"Flax keeps the biased variance of a batch (divided by {n}), PyTorch the unbiased one (by {n - 1})"
            yield Finding("biased-variance", norm.label, True, text, norm.unbiased)
        return
    yield found


def _kept(values: list[np.ndarray], momentum: float, factor: float) -> float | None:
    """Solve for the share of the old that Flax keeps, if the batch's statistic is PyTorch's times a factor."""
    old, theirs, ours = values
    batch = factor * ((theirs - (1 - momentum) * old) / momentum)
    apart = old - batch
    share = float((apart * (ours - batch)).sum() / ((apart**2).sum() or 1.0))
    bound = ROUNDING / momentum * max(np.abs(batch).max(initial=0), np.abs(old).max(initial=0))
    if np.abs(share * apart - (ours - batch)).max(initial=0) > bound:
        return None
    return shortest(share, lambda short: abs(short - share) <= ROUNDING / momentum)


def _how(mean: list[np.ndarray], var: list[np.ndarray]) -> str:
    """Say how they differ."""
    errors = [np.abs(ours - theirs) / (np.abs(theirs).max() or 1) for _, theirs, ours in (mean, var)]
    parts = [f"{kind} by {e.max():.1e} in {(e > FLOAT64_BOUND).sum()} of {e.size} channels"
             for kind, e in zip(("mean", "variance"), errors, strict=True) if e.max() > FLOAT64_BOUND]  # fmt: skip
    return f"running statistics differ ({', '.join(parts)}), and not by what is kept of the old ones"
