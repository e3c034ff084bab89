"""Mistakes of attention: scale, mask, heads, rotary positions, blocks of projections; and of recurrent layers."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity.diagnosis.cause import Cause, Causes, Place, altered, edited, orders
from parity.diagnosis.glue import words
from parity.diagnosis.tape import Change, Op

MASKED = -1e4  # what is added below this is a mask


def fused(op: Op, place: Place) -> Causes:
    """Give the mistakes of scaled dot product attention, [n, heads, length, features]."""
    a, fw = op.args, place.framework
    q, k = a["query"], a["key"]
    width, rows, columns = q.shape[-1], q.shape[-2], k.shape[-2]
    scale = a.get("scale") or width**-0.5
    own = "causal" if a.get("is_causal") else "a mask" if a.get("attn_mask") is not None else "none"
    text = f"Flax scales queries times keys by {{x:.9g}}, PyTorch by {scale:.6g}"
    if a.get("scale") is None:
        text += f", 1 / sqrt({width})"
    repair = f"q * {scale:.6g}" if a.get("scale") else "q / jnp.sqrt(q.shape[-1])"
    yield Cause("attention-scale", text, repair, lambda x: altered(op, scale=x), (scale, 1.0))
    mask = next((m for name, m in _masks(rows, columns, a.get("attn_mask")) if name == own), None)
    for name, other in _masks(rows, columns, a.get("attn_mask")):
        if name != own:
            change = edited(op, lambda now, m=other: attend(now.args, scale, m)) if name != "none" else altered(
                op, is_causal=False, attn_mask=None)  # fmt: skip
            mend = f"mask={fw}.make_causal_mask(x)" if own == "causal" else "mask= as PyTorch's, true where it keeps"
            mend = "no mask" if own == "none" else mend
            yield Cause("attention-mask", f"Flax's mask is {name}, PyTorch's is {own}", mend, change)
    for text, kept in _hidden(len(q), rows, columns, place):
        both = kept if mask is None else kept & mask
        yield Cause("attention-mask", text, "mask= as PyTorch's",
                    edited(op, lambda now, m=both: attend(now.args, scale, m)))  # fmt: skip
    for axis, what in ((-2, "queries"), (-3, "heads")):
        yield Cause("softmax-axis", f"Flax takes the softmax over {what}, PyTorch over keys",
                    "jax.nn.softmax(scores, axis=-1)",
                    edited(op, lambda now, i=axis: attend(now.args, scale, mask, axis=i)))  # fmt: skip
    for order in orders(("query", "key", "value")):
        text = f"Flax takes PyTorch's {', '.join(order)} for query, key and value"
        change = edited(op, lambda now, o=order: now.compute(
            query=now.args[o[0]], key=now.args[o[1]], value=now.args[o[2]]))  # fmt: skip
        yield Cause("weights-shuffled", text, "q, k, v in PyTorch's order", change)
    yield from _heads(op, scale, mask)


def _masks(rows: int, columns: int, given: Any) -> Iterator[tuple[str, Any]]:
    """List masks by name: what is kept."""
    ones = torch.ones(rows, columns, dtype=torch.bool)
    yield "none", None
    yield "causal", ones.tril()
    yield "causal, off by one (it hides the present too)", ones.tril(-1)
    yield "causal, off by one (it shows the next too)", ones.tril(1)
    yield "causal the other way round", ones.triu()
    if rows != columns:
        yield "causal from the last row up", ones.tril(columns - rows)
    if given is not None:
        kept = given > MASKED if given.is_floating_point() else given
        yield "a mask", kept
        yield "the opposite", ~kept
        if kept.shape[-1] == kept.shape[-2]:
            yield "transposed", kept.transpose(-1, -2)


def _hidden(images: int, rows: int, columns: int, place: Place) -> Iterator[tuple[str, Any]]:
    """List masks that Flax may have beside PyTorch's: padding, by the values of an input, and a window."""
    for name, x in place.held.items():
        if name.startswith("input ") and x.shape == (images, columns) and not x.is_floating_point():
            for value in (0, 1):
                kept = (x != value)[:, None, None]
                if kept.any() and not kept.all():
                    yield f"Flax masks the keys where {name} is {value}, PyTorch does not", kept
                    text = f"Flax masks queries and keys where {name} is {value}, PyTorch does not"
                    yield from [(text, kept & kept.transpose(-1, -2))] if rows == columns else []
    for width in range(1, columns) if rows == columns else ():
        kept = torch.ones(rows, columns, dtype=torch.bool).triu(1 - width)
        yield f"Flax attends to the last {width} positions only, PyTorch to all", kept


def softmax(op: Op, place: Place) -> Causes:
    """Give the masks that Flax may have where PyTorch's scores go into a softmax."""
    if place.attention and op.input.ndim == 4:
        images, _, rows, columns = op.input.shape
        low = torch.finfo(op.input.dtype).min
        for text, kept in _hidden(images, rows, columns, place):
            yield Cause("attention-mask", text, "mask= as PyTorch's", edited(
                op, lambda now, m=kept: now.compute(self=now.input.masked_fill(~m, low))))  # fmt: skip


def attend(a: Mapping[str, Any], scale: float, kept: Any, axis: int = -1) -> Any:
    """Compute attention: rows in which all is masked see everything alike."""
    scores = a["query"] @ a["key"].transpose(-1, -2) * scale
    if kept is not None:
        scores = scores.masked_fill(~kept, torch.finfo(scores.dtype).min)
    made = torch.softmax(scores, axis) @ a["value"]
    return made, made.sum(-1)


def _heads(op: Op, scale: float, mask: Any) -> Causes:
    """Give another number of heads, or heads that lie otherwise in an axis."""
    _, heads, _, width = op.args["query"].shape
    whole = heads * width

    def split(x: torch.Tensor, count: int, inner: bool) -> torch.Tensor:  # [n, heads, length, width]
        flat = x.transpose(1, 2).reshape(len(x), x.shape[2], -1)
        size = flat.shape[-1] // count
        return (flat.unflatten(-1, (size, count)).permute(0, 3, 1, 2) if inner
                else flat.unflatten(-1, (count, size)).transpose(1, 2))  # fmt: skip

    def made(now: Op, count: int, inner: bool) -> Any:
        a = {name: split(now.args[name], count, inner) for name in ("query", "key", "value")}
        kept = mask if mask is None or mask.ndim < 4 or mask.shape[1] == 1 else None
        out, _ = attend(a, scale if count == heads else (whole // count) ** -0.5, kept)
        flat = (out.permute(0, 2, 3, 1) if inner else out.transpose(1, 2)).flatten(2)
        back = flat.unflatten(-1, (heads, width)).transpose(1, 2)
        return back, back.sum(-1)

    for count in (c for c in range(1, whole + 1) if whole % c == 0 and heads > 0):
        for inner in (False, True):
            if (count, inner) != (heads, False):
                text = (
                    f"Flax has {count} heads, PyTorch {heads}"
                    if count != heads
                    else ("Flax splits the last axis into (features, heads), PyTorch into (heads, features)")
                )
                yield Cause("attention-heads", text, f"num_heads={heads}" if count != heads else
                            f"reshape(..., {heads}, {width})", edited(
                                op, lambda now, c=count, i=inner: made(now, c, i)))  # fmt: skip


def masked(op: Op, place: Place) -> Causes:
    """Give the mistakes of a mask: none, the opposite."""
    condition = "condition" if op.kind == "where" else "mask"
    code = "attention-mask" if place.attention else "layer-missing"
    where = words(op)
    text = "Flax masks what PyTorch keeps"
    yield Cause(code, text, where, edited(
        op, lambda now: now.compute(**{condition: ~now.args[condition].bool()})))  # fmt: skip
    for kept in ("self", "other"):
        if isinstance(op.args.get(kept), torch.Tensor) and op.args[kept].shape == op.outputs[0].shape:
            yield Cause(
                code, "Flax masks nothing, PyTorch does", where, edited(op, lambda now, k=kept: now.args[k].clone())
            )


def triangle(op: Op, place: Place) -> Causes:
    """Give a causal mask that is shifted, or turned round."""
    own = op.args.get("diagonal", 0)
    code = "attention-mask"
    where = f"jnp.{op.kind}(x, {own})"
    for shift in (1, -1):
        yield Cause(code, f"Flax's causal mask is off by one: diagonal {own + shift}, PyTorch's {own}", where,
                    altered(op, diagonal=own + shift))  # fmt: skip
    other = torch.triu if op.kind == "tril" else torch.tril
    yield Cause(code, "Flax's causal mask is the other way round", where, edited(op, lambda now: other(now.input, own)))
    yield Cause(code, "Flax has no causal mask", where, edited(op, lambda now: torch.ones_like(now.input)))


def module(name: str, layer: Any, path: str, state: Mapping[str, torch.Tensor], place: Place) -> Causes:
    """Give the mistakes of a whole module: blocks of its projections or gates in another order, its biases."""
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        yield from _blocks([n for n in (f"{path}.in_proj_weight", f"{path}.in_proj_bias") if n in state], state, "qkv")
    if isinstance(layer, nn.RNNBase) and layer.bidirectional:
        later = {n: torch.cat(w.detach().chunk(2, 1)[::-1], 1) for n, w in state.items()
                 if n.startswith(f"{path}.weight_ih_l") and "_l0" not in n}  # fmt: skip

        def turn(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            return torch.cat(output[0].chunk(2, -1)[::-1], -1), *output[1:]

        yield Cause("concatenation", "Flax has the backward direction before the forward one, PyTorch after it",
                    "jnp.concatenate([forward, backward], axis=-1)",
                    Change(calls={name: turn}, state=later), layer=path)  # fmt: skip
    if isinstance(layer, nn.LSTM | nn.GRU):
        arrays = [n for n in state if n.startswith(f"{path}.") and ("weight_" in n or "bias_" in n)]
        yield from _biases(arrays, layer, path, state)
        yield from _blocks(arrays, state, "ifgo" if isinstance(layer, nn.LSTM) else "rzn")
    if type(layer).__name__.startswith("InstanceNorm"):
        for eps in (layer.eps, 1e-6):
            text = "Flax normalises over channels, PyTorch over each channel of each image"
            change = Change(calls={name: partial(_over_channels, eps=eps)})
            yield Cause("normalised-axes", text, f"{place.framework}.InstanceNorm", change)


def _biases(arrays: list[str], layer: nn.Module, path: str, state: Mapping[str, torch.Tensor]) -> Causes:
    """Give the mistakes of a recurrent layer's biases."""
    hidden = [n for n in arrays if "bias_hh" in n]
    zero = {n: torch.zeros_like(state[n]) for n in arrays if "bias" in n}
    changes = [("no biases, PyTorch has", zero)]
    if isinstance(layer, nn.GRU):
        summed = {n.replace("bias_hh", "bias_ih"): state[n.replace("bias_hh", "bias_ih")] + state[n] for n in hidden}
        without = {n: zero[n] for n in hidden}
        changes += [("no bias inside the reset gate's product, PyTorch b_hn", some) for some in
                    (without, {**summed, **without})]  # fmt: skip
    for text, changed in changes:
        yield Cause("bias-missing", f"Flax has {text}", "a cell whose hidden transformation has a bias too",
                    Change(state=changed), layer=path)  # fmt: skip


def _over_channels(module: Any, args: Any, kwargs: Any, output: Any, eps: float) -> torch.Tensor:
    """Normalise an image over its channels."""
    given = args[0].movedim(1, -1)
    return F.layer_norm(given, given.shape[-1:], module.weight, module.bias, eps).movedim(-1, 1)


def _blocks(arrays: list[str], state: Mapping[str, torch.Tensor], letters: str) -> Causes:
    """Give other orders of the blocks of arrays."""
    for order in orders(range(len(letters))):
        changed = {n: torch.cat([state[n].detach().chunk(len(letters))[i] for i in order]) for n in arrays}
        text = f"Flax has the blocks in the order {', '.join(letters[i] for i in order)}, PyTorch {', '.join(letters)}"
        yield Cause("weights-shuffled", text, f"blocks in the order {', '.join(letters)}", Change(state=changed))
