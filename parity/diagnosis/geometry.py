"""Mistakes of convolutions, paddings and resizing: strides, dilations, groups, flipped kernels."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from parity.diagnosis.cause import Cause, Causes, Place, altered, as_torch, edited, numbers
from parity.diagnosis.tape import Op

Pads = tuple[tuple[int, int], ...]  # before and after each axis
TRANSPOSE = "np.transpose(weight, (2, 3, 1, 0)) of PyTorch's weight [out, in, h, w]"
MODES = {"circular": "CIRCULAR", "reflect": "REFLECT", "replicate": "EDGE"}


def convolution(op: Op, place: Place) -> Causes:
    """Give the mistakes of a convolution."""
    a, nn = op.args, place.framework
    weight, axes = a["weight"], tuple(range(2, a["weight"].ndim))
    layer = f"{nn}.{'ConvTranspose' if a['transposed'] else 'Conv'}(..., "
    if a["bias"] is not None:
        yield Cause("bias-missing", "Flax adds no bias, PyTorch does", f"{layer}use_bias=True)", altered(op, bias=None))
    turned = "turns its kernel round" if a["transposed"] else "slides its kernel turned round"
    repair = "kernel[::-1, ::-1]" + (", or transpose_kernel=True with the axes (h, w, out, in)" * a["transposed"])
    yield Cause("kernel-flipped", f"Flax {turned}, PyTorch does not", repair, altered(op, weight=weight.flip(axes)))
    if len(axes) == 2 and weight.shape[-1] == weight.shape[-2] > 1:
        swapped = altered(op, weight=weight.transpose(-1, -2))
        yield Cause("kernel-axes", "Flax has the kernel's height and width swapped", TRANSPOSE, swapped)
    if weight.shape[0] == weight.shape[1] > 1:
        swapped = altered(op, weight=weight.transpose(0, 1))
        yield Cause("kernel-axes", "Flax has the kernel's input and output channels swapped", TRANSPOSE, swapped)
    yield from _crops(op, place, layer) if a["transposed"] else _windows(op, place, layer)
    yield from _groups(op, place)


def _windows(op: Op, place: Place, layer: str) -> Causes:
    """Give other strides, dilations and paddings."""
    a, n = op.args, len(op.args["stride"])
    before = next((o for o in place.ops.values() if o.key in op.sources and o.kind == "constant_pad_nd"), None)
    outer = [*before.args["pad"], *[0] * 2 * n][: 2 * n] if before else [0] * 2 * n  # the last axis first
    sizes, kernel = F.pad(a["input"], [-p for p in outer]).shape[2:], a["weight"].shape[2:]
    pairs = [*zip(outer[::2], outer[1::2], strict=True)][::-1]
    own = tuple((lo + p, hi + p) for (lo, hi), p in zip(pairs, a["padding"], strict=True))
    stride, dilation = tuple(a["stride"]), tuple(a["dilation"])

    def cause(s: tuple[int, ...], d: tuple[int, ...], pads: Pads, words: str) -> Cause:
        code = "stride" if s != stride else "dilation" if d != dilation else "padding"
        theirs = {"stride": (stride, s, f"strides={numbers(*stride)}"),
                  "dilation": (dilation, d, f"kernel_dilation={numbers(*dilation)}"),
                  "padding": (numbers(*own), words or numbers(*pads), f"padding={numbers(*own)}")}  # fmt: skip
        right, wrong, repair = theirs[code]
        also = f", padding={numbers(*own)}" if code != "padding" and pads != own else ""
        verb = {"stride": "has stride", "dilation": "has dilation", "padding": "pads by"}[code]
        change = edited(op, lambda now: now.compute(
            input=F.pad(F.pad(now.args["input"], [-p for p in outer]), flat(pads)),
            padding=[0] * n, stride=list(s), dilation=list(d)))  # fmt: skip
        return Cause(code, f"Flax {verb} {wrong}, PyTorch {right}", f"{layer}{repair}{also})", change)

    others = lambda now: [(k,) * n for k in (1, 2, 3, 4) if (k,) * n != now]  # noqa: E731
    for s, d in [
        (stride, dilation),
        *((s, dilation) for s in others(stride)),
        *((stride, d) for d in others(dilation)),
    ]:
        for pads, words in paddings(sizes, kernel, s, d, own, thorough=(s, d) == (stride, dilation)):
            if (s, d, pads) != (stride, dilation, own) and _fits(place, sizes, kernel, s, d, pads):
                yield cause(s, d, pads, words)
    if any(a["padding"]):
        for mode, name in MODES.items():
            pad = flat(own)
            change = edited(op, lambda now, mode=mode, pad=pad: now.compute(
                input=F.pad(now.args["input"], pad, mode), padding=[0] * n))  # fmt: skip
            yield Cause(
                "padding", f"Flax pads by {name}, PyTorch with zeros", f"{layer}padding={numbers(*own)})", change
            )


def flat(pads: Pads) -> list[int]:
    """Give paddings as `torch.nn.functional.pad` takes them."""
    return [n for pair in reversed(pads) for n in pair]


def paddings(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], own: Pads,
    thorough: bool,
) -> Iterator[tuple[Pads, str]]:  # fmt: skip
    """List paddings, those with a name in Flax first."""
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    total = [max((-(-n // s) - 1) * s + r + 1 - n, 0) for n, s, r in zip(sizes, stride, reach, strict=True)]
    named: list[tuple[Pads, str]] = [
        (own, ""),
        (tuple((t // 2, t - t // 2) for t in total), "'SAME'"),
        (tuple((t - t // 2, t // 2) for t in total), "'SAME_LOWER'"),
        (tuple((0, 0) for _ in total), "'VALID'"),
        (tuple((r, 0) for r in reach), "'CAUSAL'"),
    ]
    if thorough:
        far = range(max(reach) + 2)
        pairs = sorted(((lo, hi) for lo in far for hi in far), key=lambda pair: pair[0] != pair[1])
        named += [(tuple(pair for _ in reach), "") for pair in pairs]
    seen = set[Pads]()
    for pads, words in named:
        if pads not in seen:
            seen.add(pads)
            yield pads, words if words and "SAME" not in words else f"{words} = {numbers(*pads)}" if words else ""


def _fits(place: Place, sizes: Any, kernel: Any, stride: Any, dilation: Any, pads: Pads) -> bool:
    """Tell if the output has the size of Flax's, if that is known."""
    out = tuple((n + lo + hi - d * (k - 1) - 1) // s + 1
                for n, k, s, d, (lo, hi) in zip(sizes, kernel, stride, dilation, pads, strict=True))  # fmt: skip
    return all(n > 0 for n in out) and (not place.layer or place.shape[1:-1] == out or place.shape[2:] == out)


def _crops(op: Op, place: Place, layer: str) -> Causes:
    """Give other croppings of a transposed convolution, with the kernel flipped or not."""
    a = op.args
    kernel, stride, n = a["weight"].shape[2:], a["stride"], len(a["stride"])
    room = max(kernel) + max(stride)
    wanted = place.shape[1 : 1 + n] if len(place.shape) == n + 2 else None

    def cropped(now: Op, lo: int, weight: torch.Tensor, out: Sequence[int]) -> torch.Tensor:
        whole = now.compute(weight=weight, padding=[0] * n, output_padding=[0] * n, bias=None)
        whole = F.pad(whole, [room] * 2 * n)
        for axis, size in enumerate(out):
            whole = whole.narrow(2 + axis, room + lo, size)
        made = whole.contiguous()
        return made if now.args["bias"] is None else made + now.args["bias"].reshape(-1, *[1] * n)

    if wanted is None:
        return
    pads = [(d * (k - 1) - p, d * (k - 1) - p + o) for k, p, o, d in
            zip(kernel, a["padding"], a["output_padding"], a["dilation"], strict=True)]  # fmt: skip
    repair = f"{layer}padding={numbers(*pads)}, transpose_kernel=True)"
    for flip in (False, True):
        weight = a["weight"].flip(tuple(range(2, 2 + n))) if flip else a["weight"]
        for lo in range(-max(stride), max(kernel) + 1):
            change = edited(op, lambda now, lo=lo, weight=weight: cropped(now, lo, weight, wanted))
            if not flip and lo != a["padding"][0]:
                yield Cause("padding", f"Flax crops {lo} at the start, PyTorch {a['padding'][0]}", repair, change)
            elif flip:
                text = f"Flax turns its kernel round and crops {lo}, PyTorch does not and crops {a['padding'][0]}"
                yield Cause("kernel-flipped", text, repair, change)


def _groups(op: Op, place: Place) -> Causes:
    """Give other numbers of groups, with a Flax kernel that has no counterpart."""
    a = op.args
    channels, n = a["input"].shape[1], a["weight"].ndim
    for name, kernel in place.spare.items():
        if a["transposed"] or kernel.ndim != n or channels % kernel.shape[-2]:
            continue
        groups, weight = channels // kernel.shape[-2], as_torch(kernel, a["weight"].dtype)
        if groups != a["groups"] and weight.shape[2:] == a["weight"].shape[2:] and len(weight) == len(a["weight"]):
            text = f"Flax has {groups} groups, PyTorch {a['groups']} ({name} is {list(kernel.shape)})"
            for bias in (None, a["bias"]) if a["bias"] is not None else (None,):
                yield Cause("groups", text, f"{place.framework}.Conv(..., feature_group_count={a['groups']})",
                            altered(op, weight=weight, groups=groups, bias=bias))  # fmt: skip


def padded(op: Op, place: Place) -> Causes:
    """Give the mistakes of a padding by itself."""
    if op.kind.startswith("constant_pad"):
        pad = list(op.args["pad"])
        swapped = [n for i in range(0, len(pad), 2) for n in (pad[i + 1], pad[i])]
        repair = f"jnp.pad by {pad}: last axis first, as PyTorch counts"
        if swapped != pad:
            yield Cause("padding", f"Flax pads by {swapped}, PyTorch by {pad}", repair, altered(op, pad=swapped))
        even = [n for i in range(0, len(pad), 2) for n in ((pad[i] + pad[i + 1]) // 2, -(-(pad[i] + pad[i + 1]) // 2))]
        if even not in (pad, swapped):
            yield Cause("padding", f"Flax pads by {even}, PyTorch by {pad}", repair, altered(op, pad=even))
        return
    pad = list(op.args["padding"])
    repair = f'jnp.pad(x, ..., mode="{"reflect" if op.kind.startswith("reflection") else "edge"}")'
    change = edited(op, lambda now: F.pad(now.input, pad))
    yield Cause("padding", f"Flax pads with zeros, PyTorch by {op.kind}", repair, change)
    for mode in MODES:
        change = edited(op, lambda now, mode=mode: F.pad(now.input, pad, mode))
        yield Cause("padding", f"Flax pads by {mode}, PyTorch by {op.kind}", repair, change)


def resize(op: Op, place: Place) -> Causes:
    """Give other ways to resize."""
    size = list(op.args["output_size"])
    align = op.args.get("align_corners", False)
    own = op.kind.removeprefix("_").removeprefix("upsample_")
    repair = {"bilinear2d": 'jax.image.resize(x, shape, "bilinear", antialias=False)',
              "nearest2d": "x.repeat(2, axis=1).repeat(2, axis=2), or index by floor(i * in / out)"}.get(
        own if not align else "", f"resize as PyTorch's {own} does, align_corners={align}")  # fmt: skip

    def in_jax(x: torch.Tensor, method: str, antialias: bool) -> torch.Tensor:
        shape = (*x.shape[:2], *size)
        with jax.enable_x64(True):
            return torch.tensor(
                np.asarray(jax.image.resize(jnp.asarray(x.numpy()), shape, method, antialias=antialias))
            )

    right = f"PyTorch as {own}{', corners aligned' * align}"
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        for corners in (False, True) if mode.startswith("bi") else (None,):
            text = f"Flax resizes as {mode}{', corners aligned' * bool(corners)}, {right}"
            change = edited(op, lambda now, m=mode, c=corners: F.interpolate(now.input, size, mode=m, align_corners=c))
            yield Cause("resize", text, repair, change)
    for method, antialias in product(("nearest", "linear", "cubic", "lanczos3"), (True, False)):
        text = f"Flax resizes by jax.image's {method}, antialias={antialias}, {right}"
        yield Cause("resize", text, repair, edited(op, lambda now, m=method, a=antialias: in_jax(now.input, m, a)))
