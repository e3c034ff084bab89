"""Mistakes of pooling and of reductions: kind, windows, strides, paddings, axes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.cause import Cause, Causes, Place, edited, numbers, skipped
from parity.diagnosis.geometry import Pads, flat, paddings
from parity.diagnosis.tape import Op


def pooling(op: Op, place: Place) -> Causes:
    """Give the mistakes of a pooling: its kind, window, stride, padding."""
    a, n = op.args, len(op.args["kernel_size"])
    kind = "max" if op.kind.startswith("max") else "avg"
    kernel = tuple(a["kernel_size"])
    stride = tuple(a["stride"]) or kernel
    padding, sizes = tuple(a["padding"]), a["self"].shape[-n:]
    include = a.get("count_include_pad", True)
    pads = tuple(zip(padding, padding, strict=True))
    if a["ceil_mode"]:
        floor, pads = pads, tuple((p, p + (-(size + 2 * p - k) % s)) for size, p, k, s in
                                  zip(sizes, padding, kernel, stride, strict=True))  # fmt: skip
    call = f"{place.framework}.{kind}_pool(x, {numbers(*kernel)}, strides={numbers(*stride)}, padding={numbers(*pads)}"
    repair = call + (", count_include_pad=False)" if kind == "avg" and not include else ")")

    def cause(code: str, text: str, *how: Any) -> Cause:
        change = edited(op, lambda now: _returned(op, _pool(now.input, *how)))
        return Cause(code, text, repair, change)

    if a["ceil_mode"]:
        text = "Flax leaves out the last window that is not whole, PyTorch has ceil_mode=True"
        yield cause("pooling-ceil", text, kind, kernel, stride, floor, include)
    other = "avg" if kind == "max" else "max"
    yield cause("pooling-kind", f"Flax pools by {other}, PyTorch by {kind}", other, kernel, stride, pads, True)
    if kind == "avg" and any(padding):
        text = f"Flax {'does not count' if include else 'counts'} the zeros of the padding, PyTorch the other way"
        yield cause("pooling-padding", text, kind, kernel, stride, pads, not include)
    for other_pads, words in paddings(sizes, kernel, stride, (1,) * n, pads, thorough=True):
        if other_pads != pads and (not a["ceil_mode"] or other_pads != floor):
            text = f"Flax pads the pooling by {words or numbers(*other_pads)}, PyTorch by {numbers(*pads)}"
            for counted in {include, True}:
                yield cause("pooling-padding", text, kind, kernel, stride, other_pads, counted)
    for k in range(1, max(kernel) + 2):
        if (s := (k,) * n) != stride:
            text = f"Flax pools with stride {numbers(*s)}, PyTorch {numbers(*stride)}"
            for some, _ in paddings(sizes, kernel, s, (1,) * n, pads, thorough=False):
                yield cause("pooling-stride", text, kind, kernel, s, some, include)
        if k > 1 and (w := (k,) * n) != kernel:
            text = f"Flax pools windows of {numbers(*w)}, PyTorch {numbers(*kernel)}"
            for s in {stride, w}:
                for some, _ in paddings(sizes, w, s, (1,) * n, pads, thorough=False):
                    yield cause("pooling-kind", text, kind, w, s, some, include)
    yield Cause("layer-missing", f"Flax does not pool, PyTorch does ({kind})", repair, edited(
        op, lambda now: _returned(op, now.input.clone())))  # fmt: skip


def adaptive(op: Op, place: Place) -> Causes:
    """Give the mistakes of an adaptive pooling: its kind, and windows of one size in place of PyTorch's."""
    kind, words = ("max", "maximum") if "max" in op.kind else ("avg", "mean")
    other, others = ("avg", "mean") if kind == "max" else ("max", "maximum")
    out = tuple(op.args["output_size"])
    n, sizes = len(out), op.input.shape[-len(out) :]
    stride = tuple(size // k for size, k in zip(sizes, out, strict=True))
    repair = f"{place.framework}.{kind}_pool(x, {numbers(*stride)}, strides={numbers(*stride)})"
    if any(size % k for size, k in zip(sizes, out, strict=True)):
        repair = f"for each i the {words} of x[:, i * n // out : -(-(i + 1) * n // out)], n the size and out PyTorch's"
    right = f"PyTorch the {words} of {numbers(*out)} adaptive ones"

    def cause(wrong: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Cause:
        change = edited(op, lambda now: _returned(op, function(now.input)))
        return Cause("pooling-kind", f"Flax takes {wrong}, {right}", repair, change)

    pool: Any = getattr(F, f"adaptive_{other}_pool{n}d")
    yield cause(f"the {others} of each window", lambda x: pool(x, out))
    starts = [torch.arange(k) * size // k for size, k in zip(sizes, out, strict=True)]
    yield cause("the first of each window", lambda x: x[(..., *torch.meshgrid(*starts, indexing="ij"))])  # type: ignore[index]
    for k in range(1, 2 * max(stride) + 2):
        kernel = tuple(k if size > 1 else 1 for size in sizes)
        for pads, how in paddings(sizes, kernel, stride, (1,) * n, ((0, 0),) * n, thorough=True):
            padded = f", padded by {how or numbers(*pads)}" if any(map(any, pads)) else ""
            wrong = f"the {words} of windows of {numbers(*kernel)} with strides {numbers(*stride)}{padded}"
            yield cause(wrong, lambda x, w=kernel, p=pads: _pool(x, kind, w, stride, p, True))  # type: ignore[misc]


def _returned(op: Op, pooled: torch.Tensor) -> Any:
    """Give a pooling's outputs: the maximum comes with its indices, which are not needed."""
    return (pooled, torch.zeros(pooled.shape, dtype=torch.long)) if "max" in op.kind else pooled


def _pool(x: torch.Tensor, kind: str, kernel: Any, stride: Any, pads: Pads, include: bool) -> torch.Tensor:
    """Pool with any padding on each side."""
    n = len(kernel)
    if kind == "max":
        pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
        return pool(F.pad(x, flat(pads), value=-torch.inf), kernel, stride)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    total = pool(F.pad(x, flat(pads)), kernel, stride)
    return total if include else total / pool(F.pad(torch.ones_like(x), flat(pads)), kernel, stride)


def reduction(op: Op, place: Place) -> Causes:
    """Give the mistakes of a mean, a sum or a maximum over axes."""
    kinds = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax}
    axes, keep = op.args.get("dim"), op.args.get("keepdim", False)
    if not axes:
        return
    axes = [axis % op.input.ndim for axis in axes]
    repair = f"jnp.{op.kind}(x, axis=...) over PyTorch's axes {axes}"
    for kind, function in kinds.items():
        for dims in [axes, *([d] for d in range(1, op.input.ndim) if len(axes) == 1 and [d] != axes)]:
            if (kind, dims) != (op.kind, axes):
                over = "" if dims == axes else f" over another axis ({dims[0]} of PyTorch's)"
                yield Cause("pooling-kind", f"Flax takes the {kind}{over}, PyTorch the {op.kind}", repair, edited(
                    op, lambda now, f=function, d=dims: f(now.input, dim=d, keepdim=keep)))  # fmt: skip
    if len(axes) == 1 and not keep:
        for index in (0, -1):
            yield Cause("pooling-kind", f"Flax takes element {index}, PyTorch the {op.kind}", repair, edited(
                op, lambda now, i=index: now.input.select(axes[0], i).clone()))  # fmt: skip
    if len(axes) > 1:
        yield Cause("layer-missing", f"Flax takes no {op.kind}", repair, skipped(op))
