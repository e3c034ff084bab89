"""Why two losses of the same outputs differ: by a factor, by smoothed labels, or both."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from parity.bounds import agrees
from parity.calls import leaves
from parity.diagnosis.finding import Finding
from parity.diagnosis.solve import shortest
from parity.given import lenient

NLL = (torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss2d_forward.default)
SAME = 1e-9  # two factors
Losses = tuple[Callable[[Any], Any], Callable[[Any], Any]]


class Part(NamedTuple):
    """The parts of a loss of classes: its size without smoothing, and with smoothing alone."""

    plain: float
    smooth: float
    counts: Mapping[str, float]  # of what is summed
    classes: int


class _Classes(TorchDispatchMode):
    """Record what the loss of PyTorch gives to `nll_loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in NLL:
            self.seen.append(args)
        return function(*args, **(kwargs or {}))


def loss_findings(losses: Losses, torch_output: Any, flax_output: Any) -> list[Finding]:
    """Say why (PyTorch's, JAX's) losses of one output, as each framework has it, differ; nothing if they agree."""
    with jax.enable_x64(True), lenient():
        pairs = [*_outputs(torch_output, flax_output)]
        theirs, ours, parts = [], [], list[Part]()
        for one, other in pairs:
            with _Classes() as classes:
                theirs.append(float(losses[0](one)))
            ours.append(float(losses[1](other)))
            parts += [_part(*classes.seen[0])] if len(classes.seen) == 1 else []
    found, truth = np.array(ours), np.array(theirs)
    if agrees(found, truth):
        return []
    counts = _counts(torch_output) | (dict(parts[0].counts) if parts else {})
    if agrees(found, truth * (found[0] / truth[0])):
        return [_factor(found[0] / truth[0], counts)]
    if len(parts) == len(pairs) and (some := [*_smoothing(found, truth, parts, counts)]):
        return some
    times = ", ".join(f"{x:.4g}" for x in found / truth)
    text = (
        f"Flax's loss is {found[0]:.6g}, PyTorch's {truth[0]:.6g}; on this and two other outputs {times} times as large"
    )
    return [Finding("unknown", "loss", False, text, "")]


def _outputs(torch_output: Any, flax_output: Any) -> Iterator[tuple[Any, Any]]:
    """Give the output and two others, made by the same elementwise function on both sides, which keeps 0 to 1."""
    for power in (1.0, 2.0, 0.5):
        yield (
            _pytree.tree_map(lambda t, power=power: _power(torch, t, power), torch_output),
            jax.tree.map(lambda a, power=power: _power(jnp, a, power), flax_output),
        )


def _power(library: Any, x: Any, power: float) -> Any:
    """Raise the absolute value of floating numbers to a power."""
    x = x.detach() if isinstance(x, torch.Tensor) else x
    if not hasattr(x, "dtype") or "float" not in str(x.dtype):
        return x
    x = x.double() if library is torch else jnp.asarray(x, jnp.float64)
    return library.sign(x) * library.abs(x) ** power


def _part(logs: torch.Tensor, target: torch.Tensor, weight: Any, reduction: int, ignored: int) -> Part:
    """Make the loss again, without smoothing and with smoothing alone."""
    how: dict[str, Any] = {"weight": weight, "ignore_index": ignored, "reduction": "mean" if reduction == 1 else "sum"}
    plain, smooth = (float(F.cross_entropy(logs, target, **how, label_smoothing=share)) for share in (0.0, 1.0))
    real = target[target != ignored]
    counts = {"targets": target.numel(), "targets that are not ignored": real.numel()}
    if weight is not None:
        counts["weights of the targets"] = float(weight[real].sum())  # type: ignore[assignment]
    return Part(plain, smooth, counts, logs.shape[1 if logs.ndim > 1 else 0])


def _counts(output: Any) -> dict[str, float]:
    """Count what a loss may sum over."""
    floats = [leaf for _, leaf in leaves([output]) if "float" in str(leaf.dtype)]
    if not floats or not floats[0].ndim:
        return {}
    batch, size = floats[0].shape[0], int(np.prod(floats[0].shape))
    return {"rows of the batch": batch, "elements": size, "elements of a row": size / batch}


def _factor(ratio: float, counts: Mapping[str, float]) -> Finding:
    """Say what the ratio of Flax's loss to PyTorch's is."""
    counts = {what: count for what, count in counts.items() if count not in (0, 1)}
    same = lambda x: abs(x - 1) < SAME  # noqa: E731
    for share, words, half in ((1.0, "", ""), (0.5, " of half the squares (optax.l2_loss)", "2 * ")):
        rest, text = ratio / share, ""
        if same(rest):
            text, repair = "Flax's loss is half of PyTorch's, as optax.l2_loss is", "2 * loss"
        for what, n in counts.items() if not text else ():
            if same(rest / n):
                text, repair = (
                    f"Flax takes the sum{words} over {n:.7g} {what}, PyTorch the mean",
                    f"{half}loss / {n:.7g}",
                )
                break
            if same(rest * n):
                text, repair = (
                    f"Flax takes the mean{words} over {n:.7g} {what}, PyTorch the sum",
                    f"{half}loss * {n:.7g}",
                )
                break
        if text:
            return Finding("loss-reduction", "loss", True, text, repair)
    short = shortest(ratio, lambda x: abs(x - ratio) < SAME * abs(ratio))
    text, repair = f"Flax's loss is {short:.9g} times PyTorch's", f"loss / {short:.9g}"
    for (one, n), (two, m) in ((a, b) for a in counts.items() for b in counts.items()):
        if same(ratio * m / n):
            text, repair = f"Flax divides by {m:.7g} {two}, PyTorch by {n:.7g} {one}", f"loss * {m:.7g} / {n:.7g}"
    return Finding("loss-reduction", "loss", True, text, repair)


def _smoothing(
    ours: np.ndarray, theirs: np.ndarray, parts: list[Part], counts: Mapping[str, float]
) -> Iterator[Finding]:
    """Solve for how much each side smooths the labels, and for a factor."""
    (factor, share), (own, truth) = (_solved(loss, parts) for loss in (ours, theirs))
    if not np.isfinite([factor, share, own, truth]).all() or abs(share - truth) < SAME:
        return
    classes = parts[0].classes
    ours_, theirs_ = (abs(s) > SAME and shortest(s, lambda x, s=s: abs(x - s) < SAME) for s in (share, truth))  # type: ignore[misc]
    spread = shortest(share * (classes - 1) / classes, lambda x: abs(x * classes / (classes - 1) - share) < SAME)
    text = f"Flax smooths labels by {ours_:.7g}, PyTorch by {theirs_:.7g}"
    if ours_ and len(f"{spread:.7g}") < len(f"{ours_:.7g}"):
        text += f" (Flax's are {spread:.7g} spread over the other classes only)"
    repair = f"optax.smooth_labels(jax.nn.one_hot(labels, {classes}), {theirs_:.7g})"
    repair = repair if theirs_ else "optax.softmax_cross_entropy_with_integer_labels(logits, labels)"
    yield Finding("loss-smoothing", "loss", True, text, repair)
    if abs(factor / own - 1) > SAME:
        yield _factor(factor / own, counts)


def _solved(loss: np.ndarray, parts: list[Part]) -> tuple[float, float]:
    """Find the factor and the smoothing that give three losses; NaN if there are none."""
    matrix = np.array([[part.plain, part.smooth] for part in parts])
    found = np.linalg.lstsq(matrix, loss, rcond=None)[0]
    total = float(found.sum())
    if not total or not agrees(matrix @ found, loss):
        return np.nan, np.nan
    return total, float(found[1]) / total
