"""Mistakes of rotary positions, however PyTorch writes them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from parity.diagnosis.cause import Cause, Causes
from parity.diagnosis.tape import Change, Op


class Rotation(NamedTuple):
    """What is rotated, and the angles: [..., d], and [..., d / 2]."""

    x: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    neighbours: bool  # features 2i and 2i + 1 are a pair, not i and i + d / 2


def rotary(ops: Mapping[Any, Op]) -> Causes:
    """Give the mistakes of rotary positions: the other pairing of features, the other direction, none."""
    found = {key: turn for key, op in ops.items() if (turn := _rotation(op, ops))}
    if not found:
        return
    own = next(iter(found.values())).neighbours
    names = "features 2i and 2i + 1", "features i and i + d / 2"
    pair, turned = f"pair {names[not own]}", "turn a pair (a, b) to (a * cos - b * sin, b * cos + a * sin)"
    kinds = [(f"Flax pairs {names[own]}, PyTorch {names[not own]}", pair, _turned(not own, not own)),
             (f"Flax pairs {names[own]} and puts them apart, PyTorch {names[not own]}", pair, _turned(not own, own)),
             ("Flax turns the other way", turned, _turned(own, own, -1.0)),
             ("Flax does not rotate, PyTorch does", "rotate queries and keys", lambda turn: turn.x.clone()),
    ]  # fmt: skip
    for text, repair, function in kinds:
        edits = {
            key: (lambda now, t=turn, f=function: f(t).reshape(now.compute().shape)) for key, turn in found.items()
        }
        yield Cause("rotary", text, repair, Change(ops=edits))
        for key in found if len(found) > 1 else ():
            yield Cause("rotary", f"{text} (at {ops[key].line})", repair, Change(ops={key: edits[key]}))


def _rotation(op: Op, ops: Mapping[Any, Op]) -> Rotation | None:
    """Find what an operation has rotated, if it ends a rotation."""
    return _summed(op, ops) or _joined(op, ops) or _complex(op, ops)


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


def _complex(op: Op, ops: Mapping[Any, Op]) -> Rotation | None:
    """Find x, cos and sin in view_as_real(view_as_complex(x) * (cos + i sin))."""
    product = next((ops[key] for key in op.sources if key in ops and ops[key].kind == "mul"), None)
    if op.kind != "view_as_real" or product is None:
        return None
    pairs = next(
        (ops[key].outputs[0] for key in product.sources if key in ops and ops[key].kind == "view_as_complex"), None
    )
    if pairs is None:
        return None
    one, two = product.args["self"], product.args["other"]
    angles = two if torch.equal(one, pairs) else one
    return Rotation(torch.view_as_real(pairs).flatten(-2), angles.real, angles.imag, neighbours=True)
