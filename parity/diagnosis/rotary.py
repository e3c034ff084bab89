"""Mistakes of rotary positions, however PyTorch writes them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from parity.diagnosis.cause import Cause, Causes, Place, skipped
from parity.diagnosis.tape import Change, Op


class Rotation(NamedTuple):
    """What is rotated, and the angles: [..., d], and [..., d / 2]."""

    x: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    neighbours: bool  # features 2i and 2i + 1 are a pair, not i and i + d / 2


def rotary(ops: Mapping[Any, Op], place: Place) -> Causes:
    """Give the mistakes of rotary positions: the other pairing of features, the other direction, none."""
    found = {key: turn for key, op in ops.items() if (turn := _summed(op, ops) or _joined(op, ops))}
    if not found:
        return
    own = next(iter(found.values())).neighbours
    names = "features 2i and 2i + 1", "features i and i + d / 2"
    repair = f"pair {names[not own]}"
    kinds = [(f"Flax pairs {names[own]}, PyTorch {names[not own]}", _turned(not own, not own)),
             (f"Flax pairs {names[own]} and puts them apart, PyTorch {names[not own]}", _turned(not own, own)),
             ("Flax turns the other way", _turned(own, own, -1.0)),
             ("Flax does not rotate, PyTorch does", lambda turn: turn.x.clone())]  # fmt: skip
    for text, function in kinds:
        edits = {
            key: (lambda now, t=turn, f=function: f(t).reshape(now.compute().shape)) for key, turn in found.items()
        }
        yield Cause("rotary", text, repair, Change(ops=edits))
        for key in found if len(found) > 1 else ():
            yield Cause("rotary", f"{text} (at {ops[key].line})", repair, Change(ops={key: edits[key]}))


def _turned(taken: bool, put: bool, sign: float = 1.0) -> Callable[[Rotation], torch.Tensor]:
    """Rotate pairs of neighbours or of halves, and store them as neighbours or as halves."""

    def rotate(turn: Rotation) -> torch.Tensor:
        half = turn.x.shape[-1] // 2
        a, b = (turn.x[..., ::2], turn.x[..., 1::2]) if taken else (turn.x[..., :half], turn.x[..., half:])
        parts = a * turn.cos - sign * b * turn.sin, b * turn.cos + sign * a * turn.sin
        return torch.stack(parts, -1).flatten(-2) if put else torch.cat(parts, -1)

    return rotate


def _summed(op: Op, ops: Mapping[Any, Op]) -> Rotation | None:
    """Find x, cos and sin in x * cos + rotate_half(x) * sin."""
    products = [ops[key] for key in op.sources if key in ops and ops[key].kind == "mul"]
    if op.kind != "add" or len(products) != 2 or not all(isinstance(p.args["other"], torch.Tensor) for p in products):
        return None
    for one, two in (products, products[::-1]):
        turned = [ops[key] for key in two.sources if key in ops and ops[key].kind in ("cat", "stack", "view")]
        turned += [ops[key] for t in turned for key in t.sources if key in ops and ops[key].kind == "stack"]
        if any(ops[key].kind == "neg" for t in turned for key in t.sources if key in ops):
            x, cos, sin = one.args["self"], one.args["other"], two.args["other"]
            neighbours = any(t.kind == "stack" for t in turned)
            first = slice(0, None, 2) if neighbours else slice(0, x.shape[-1] // 2)
            return Rotation(x, cos[..., first], sin[..., first], neighbours)
    return None


def _joined(op: Op, ops: Mapping[Any, Op]) -> Rotation | None:
    """Find x, cos and sin in cat or stack of (a * cos - b * sin, b * cos + a * sin)."""
    if op.kind not in ("cat", "stack") or len(op.args["tensors"]) != 2:
        return None
    parts = {ops[key].kind: ops[key] for key in op.sources if key in ops}
    if {*parts} != {"sub", "add"}:
        return None
    left, right = ([ops[key].args for key in parts["sub"].sources if key in ops and ops[key].kind == "mul"] + [{}] * 2)[
        :2
    ]
    if (
        not (left and right)
        or not isinstance(left["other"], torch.Tensor)
        or not isinstance(right["other"], torch.Tensor)
    ):
        return None
    if not torch.equal(parts["sub"].input, left["self"] * left["other"]):
        left, right = right, left
    a, b = left["self"], right["self"]
    neighbours = op.kind == "stack"
    x = torch.stack((a, b), -1).flatten(-2) if neighbours else torch.cat((a, b), -1)
    return Rotation(x, left["other"], right["other"], neighbours)


def complex_rotary(op: Op, place: Place) -> Causes:
    """Give the other pairing of features where PyTorch rotates complex numbers."""
    backs = [other for other in place.ops.values() if other.kind == "view_as_real" and other.calls == op.calls]

    def halves(now: Op) -> Any:
        flat = now.input.flatten(-2)
        return torch.view_as_complex(torch.stack(flat.chunk(2, -1), -1).contiguous())

    def back(now: Op) -> Any:
        pairs = torch.view_as_real(now.input)
        return torch.cat((pairs[..., 0], pairs[..., 1]), -1).reshape(pairs.shape)

    alike = [other for other in place.ops.values() if other.kind == op.kind and other.calls == op.calls]
    change = Change(ops={**{o.key: halves for o in alike}, **{o.key: back for o in backs}})
    yield Cause("rotary", "Flax pairs features i and i + d / 2, PyTorch 2i and 2i + 1",
                "pair features 2i and 2i + 1: x.reshape(..., -1, 2)", change)  # fmt: skip
    yield Cause("rotary", "Flax does not rotate, PyTorch does", "rotate queries and keys", skipped(op))
