"""Mistakes between layers: sums, products, shapes, order, positions."""

from itertools import permutations
from typing import Any

import torch

from parity.diagnosis.cause import Cause, Causes, Place, altered, apart, edited, is_parameter, orders, skipped, solved
from parity.diagnosis.functions import ACTIVATIONS, offsets, written
from parity.diagnosis.tape import Change, Op

SMALL = 0.01  # numbers below are epsilons
NEAREST = 12  # other arrays that are tried in the place of one


def addition(op: Op, place: Place) -> Causes:
    """Give the mistakes of a sum: a part left out, another array in its place, another order."""
    one, two = op.input, op.args["other"]
    if not isinstance(two, torch.Tensor):
        yield from _added_number(op, place, two)
        return
    broadcast = one.shape != two.shape
    if place.attention and broadcast:
        code, what = "attention-mask", "mask"
    elif is_parameter(two):
        code, what = "bias-missing", "bias"
    else:
        code, what = ("layer-missing", "embedding") if broadcast else ("residual", "residual")
    parts = [("self", one), ("other", two)]
    for kept, part in parts:
        if part.shape == op.outputs[0].shape:
            text = f"Flax does not add the {what}, PyTorch does"
            yield Cause(code, text, words(op), edited(op, lambda now, k=kept: now.args[k].clone()))
    if broadcast and not is_parameter(two):
        for axis in range(1, two.ndim):
            for shift in (1, -1) if two.shape[axis] > 2 and not place.attention else ():
                yield Cause("position-offset", f"Flax adds the {what} shifted by {shift}", "add it as it is", edited(
                    op, lambda now, s=shift, a=axis: now.compute(other=now.args["other"].roll(s, a))))  # fmt: skip
    if not broadcast:
        yield from _another_part(op, place)
        yield from _another_order(op, place)


def words(op: Op) -> str:
    """Say where an operation is in PyTorch: its line, or its module."""
    return (
        f"as PyTorch: {op.line}"
        if op.line
        else f"as PyTorch in {op.calls[-1].replace('/', '.') or 'forward'}: {op.kind}"
    )


def _added_number(op: Op, place: Place, number: Any) -> Causes:
    if op.input.dtype in (torch.int64, torch.int32):
        yield from positions(op, place)
    elif abs(number) < SMALL:
        yield Cause("epsilon", f"Flax uses epsilon {{x:g}}, PyTorch {number:g}", f"epsilon={number:g}",
                    solved(op, "other"), (1e-5, 1e-3))  # fmt: skip
    else:
        text = f"Flax adds {{x:g}}, PyTorch {number:g}"
        yield Cause("scale", text, f"x + {number:g}", solved(op, "other"), (0.0, float(number)))


def _another_part(op: Op, place: Place) -> Causes:
    """Add another array of this shape: the residual is taken elsewhere."""
    keys = list(place.ops)
    before = [o for o in place.ops.values() if keys.index(o.key) < keys.index(op.key)]
    arrays = {f"the output of {source}": t for source, t in place.held.items()}
    arrays |= {f"the output of {o.kind} in {o.calls[-1] or 'forward'}": o.outputs[0] for o in before}
    alike = {name: t for name, t in arrays.items() if isinstance(t, torch.Tensor) and t.shape == op.input.shape}
    repair = words(op)
    for name, value in [*alike.items()][::-1][:NEAREST]:
        for part in ("self", "other"):
            if not _multiple(value, op.args[part]):  # otherwise it is the factor that is missing
                text = f"Flax adds {name.replace('/', '.')} instead of what PyTorch adds"
                yield Cause("residual-order", text, repair, edited(
                    op, lambda now, p=part, v=value: now.compute(**{p: v})))  # fmt: skip


def _multiple(value: torch.Tensor, part: torch.Tensor) -> bool:
    """Tell if an array is a multiple of another."""
    value, part = value.detach(), part.detach()
    square = float((value * value).sum())
    return square > 0 and torch.allclose(value * (float((value * part).sum()) / square), part, rtol=1e-9, atol=1e-12)


def _another_order(op: Op, place: Place) -> Causes:
    """Apply the activation that follows to one part only."""
    for then in place.ops.values():
        if op.key in then.sources and then.kind in ACTIVATIONS:
            name, call = written(then, place.framework)
            for part in ("self", "other"):
                activated = lambda now, p=part, t=then: now.compute(**{p: t.compute(self=now.args[p])})  # noqa: E731
                change = Change(ops={op.key: activated, then.key: lambda now: now.input.clone()})
                text = f"Flax applies {name} before the residual is added, PyTorch after"
                yield Cause("residual-order", text, call.replace("x", "x + y", 1), change)


def product(op: Op, place: Place) -> Causes:
    """Give the mistakes of a product or a quotient: none, another number, 1 + w for w."""
    number, verb = op.args["other"], "multiplies" if op.kind == "mul" else "divides"
    sign = "*" if op.kind == "mul" else "/"
    code = _scaled(op, place)
    if isinstance(number, torch.Tensor) and number.numel() == 1:
        number = float(number)
    if not isinstance(number, torch.Tensor):
        verb += " attention's scores" if code == "attention-scale" else ""
        yield Cause(code, f"Flax {verb} by nothing, PyTorch by {number:.6g}", f"x {sign} {number:.6g}", skipped(op))
        change = lambda x: edited(op, lambda now: now.input * x if op.kind == "mul" else now.input / x)  # noqa: E731
        yield Cause(code, f"Flax {verb} by {{x:.9g}}, PyTorch by {number:.6g}", f"x {sign} {number:.6g}", change,
                    (float(number), 1.0))  # fmt: skip
        return
    for name in ("self", "other"):
        if op.args[name].shape == op.outputs[0].shape:
            yield Cause(code if code == "input-scale" else "scale", f"Flax {verb} by nothing here, PyTorch does",
                        words(op),
                        edited(op, lambda now, n=name: now.args[n].clone()))  # fmt: skip
        if is_parameter(op.args[name]) and op.kind == "mul":
            yield from offsets(op, name, "what Flax stores")
    if op.kind == "div":
        yield Cause("scale", "Flax multiplies, PyTorch divides", words(op), edited(
            op, lambda now: now.input * now.args["other"]))  # fmt: skip


def _scaled(op: Op, place: Place) -> str:
    """Say what is scaled: scores, or what they are masked with; rotary angles; the input; anything else."""
    alone = apart(op, place.ops)
    if alone and any(o.kind in ("cos", "sin") for o in place.ops.values()):
        return "rotary"
    embedded = op.sources & place.embeddings or any(place.ops[s].kind == "embedding" for s in op.sources & {*place.ops})
    if place.attention and not embedded:
        return "attention-mask" if alone else "attention-scale"
    return "input-scale" if alone and op.input.is_floating_point() and op.input.ndim > 1 else "scale"


def difference(op: Op, place: Place) -> Causes:
    """Give the mistakes of a difference: none, the other way."""
    name = next(iter(op.args))
    inverts = op.kind == "rsub" and not isinstance(op.args["other"], torch.Tensor)
    code = (
        "attention-mask"
        if inverts and place.attention
        else "input-scale"
        if _scaled(op, place) == "input-scale"
        else "scale"
    )
    text = "Flax masks what PyTorch keeps" if code == "attention-mask" else "Flax subtracts nothing here, PyTorch does"
    yield Cause(code, text, words(op), edited(op, lambda now: now.args[name].clone()))
    yield Cause(code, "Flax adds, PyTorch subtracts", words(op), edited(
        op, lambda now: now.args[name] + now.args["other"]))  # fmt: skip


def power(op: Op, place: Place) -> Causes:
    """Give another base or exponent."""
    for name in ("self", "exponent"):
        number = op.args[name]
        if not isinstance(number, torch.Tensor):
            code = "rotary" if any(o.kind in ("cos", "sin") for o in place.ops.values()) else "scale"
            word = "base" if name == "self" else "exponent"
            starts = (float(number) * 1.5, float(number) / 2, float(number) * 10)
            yield Cause(code, f"Flax takes the {word} {{x:g}}, PyTorch {number:g}", f"{word} {number:g}",
                        lambda x, n=name: altered(op, **{n: x}), starts)  # fmt: skip


def turned(op: Op, place: Place) -> Causes:
    """Give the mistakes of a transposition: none, other axes."""
    code = "attention-heads" if place.attention else "flatten-order"
    n = op.input.ndim
    own = list(range(n))
    if op.kind == "permute":
        own = [axis % n for axis in op.args["dims"]]
    elif op.kind == "transpose":
        i, j = op.args["dim0"] % n, op.args["dim1"] % n
        own[i], own[j] = j, i
    repair = words(op)
    for order in permutations(range(n)) if n < 5 else [tuple(range(n))]:
        if list(order) != own:
            text = "does not transpose" if list(order) == [*range(n)] else f"transposes to {list(order)}"
            yield Cause(code, f"Flax {text}, PyTorch to {own}", repair, edited(
                op, lambda now, o=order: now.input.permute(o).contiguous()))  # fmt: skip


def reshaped(op: Op, place: Place) -> Causes:
    """Give the mistakes of a change of shape: axes that become one, or one that becomes several, in another order."""
    before, after = op.input.shape, op.outputs[0].shape
    pairs = any(other.kind == "view_as_complex" and op.key in other.sources for other in place.ops.values())
    code = "rotary" if pairs else "attention-heads" if place.attention else "flatten-order"
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    repair = words(op)
    if len(before) > len(after) and len(before) - start < 5:
        for order in orders(range(start, len(before))):
            change = edited(op, lambda now, o=order: now.input.permute(*range(start), *o).reshape(after))
            text = f"Flax flattens PyTorch's axes in the order {list(order)}, PyTorch {[*range(start, len(before))]}"
            yield Cause(code, text, repair, change)
    if len(before) < len(after) and len(after) - start < 5:
        for order in orders(range(start, len(after))):
            inverse = [order.index(i) for i in range(start, len(after))]
            shape = [*after[:start], *(after[i] for i in order)]
            back = [*range(start), *(start + i for i in inverse)]
            change = edited(op, lambda now, s=shape, b=back: now.input.reshape(s).permute(b).contiguous())
            text = f"Flax splits an axis into {[after[i] for i in order]}, PyTorch into {list(after[start:])}"
            yield Cause(code, text, repair, change)


def joined(op: Op, place: Place) -> Causes:
    """Give another order in a concatenation."""
    tensors = op.args["tensors"]
    if 1 < len(tensors) < 5:
        for order in orders(range(len(tensors))):
            text = f"Flax concatenates in the order {list(order)} of PyTorch's arrays"
            yield Cause("concatenation", text, words(op), edited(
                op, lambda now, o=order: now.compute(tensors=[now.args["tensors"][i] for i in o])))  # fmt: skip


def parted(op: Op, place: Place) -> Causes:
    """Give another order of the parts of a fused projection, or parts that lie otherwise."""
    count = len(op.outputs)
    if 1 < count < 5:
        for order in orders(range(count)):
            text = f"Flax takes the parts in the order {list(order)}, PyTorch {[*range(count)]}"
            yield Cause("weights-shuffled", text, words(op), edited(
                op, lambda now, o=order: [now.compute()[i] for i in o]))  # fmt: skip


def positions(op: Op, place: Place) -> Causes:
    """Give positions that begin elsewhere."""
    for shift in (1, -1, 2, -2):
        text = f"Flax's positions are {'ahead' if shift > 0 else 'behind'} by {abs(shift)}"
        yield Cause("position-offset", text, words(op), edited(
            op, lambda now, s=shift: (now.compute() + s).clamp(min=0)))  # fmt: skip


def looked_up(op: Op, place: Place) -> Causes:
    """Give an embedding of other indices."""
    for shift in (1, -1, 2, -2):
        text = f"Flax looks up index {'+' if shift > 0 else '-'} {abs(shift)} of PyTorch's"
        yield Cause("position-offset", text, "the same indices as PyTorch", edited(op, lambda now, s=shift: now.compute(
            indices=(now.args["indices"] + s).clamp(0, len(now.args["weight"]) - 1))))  # fmt: skip
    yield Cause("scale", "Flax multiplies the embedding by {x:g}, PyTorch by nothing", "x without the factor",
                lambda x: edited(op, lambda now: now.compute() * x), (1.0,))  # fmt: skip


def sliced(op: Op, place: Place) -> Causes:
    """Give a slice that begins elsewhere."""
    dim, start = op.args.get("dim", 0), op.args.get("start") or 0
    length, step = op.outputs[0].shape[dim], op.args.get("step", 1)
    if step == 1 and length < op.input.shape[dim]:
        for first in range(op.input.shape[dim] - length + 1):
            if first != start % op.input.shape[dim]:
                text = f"Flax takes elements from {first} on, PyTorch from {start}"
                yield Cause("position-offset", text, f"x[..., {start}:{start + length}]", edited(
                    op, lambda now, f=first: now.input.narrow(dim, f, length).clone()))  # fmt: skip


def chosen(op: Op, place: Place) -> Causes:
    """Give another element, or a mean or maximum in its place."""
    dim, index, size = op.args["dim"], op.args["index"], op.input.shape[op.args["dim"]]
    repair = f"x[:, {index}] along PyTorch's axis {dim}"
    for other in {0, 1, size - 1, size - 2} - {index % size} if size > 1 else ():
        if 0 <= other < size:
            yield Cause(
                "position-offset", f"Flax takes element {other}, PyTorch {index}", repair, altered(op, index=other)
            )
    for name, function in (("mean", torch.mean), ("maximum", torch.amax)):
        yield Cause("pooling-kind", f"Flax takes the {name}, PyTorch element {index}", repair, edited(
            op, lambda now, f=function: f(now.input, dim=dim)))  # fmt: skip
