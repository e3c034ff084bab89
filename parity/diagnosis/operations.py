"""Which mistakes each operation of PyTorch may have in a port; and which operations may have been inserted."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, product
from math import isclose
from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis import attention, functions, geometry, glue, pooling
from parity.diagnosis.cause import Cause, Causes, Place, as_torch, edited
from parity.diagnosis.functions import FUNCTIONS
from parity.diagnosis.glue import NEAREST
from parity.diagnosis.tape import Change, Op, Source, Tape, Target

BY_KIND: dict[str, Callable[[Op, Place], Causes]] = {
    "convolution": geometry.convolution,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
                     "replication_pad2d", "replication_pad3d"), geometry.padded),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
                    pooling.pooling),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
                    pooling.adaptive),
    **dict.fromkeys(("mean", "sum", "amax"), pooling.reduction),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d",
                     "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), geometry.resize),
    **dict.fromkeys(functions.ACTIVATIONS, functions.activation),
    "_softmax": lambda op, place: chain(functions.softmax(op, place), attention.softmax(op, place)),
    "_log_softmax": functions.softmax,
    **dict.fromkeys(("native_layer_norm", "native_batch_norm", "native_group_norm"), functions.norm),
    **dict.fromkeys(("var", "std"), functions.variance),
    "_scaled_dot_product_flash_attention_for_cpu": attention.fused,
    **dict.fromkeys(("where", "masked_fill"), attention.masked),
    **dict.fromkeys(("tril", "triu"), attention.triangle),
    "add": glue.addition,
    "mul": lambda op, place: chain(functions.exchanged(op, place), glue.product(op, place)),
    "div": glue.product,
    **dict.fromkeys(("sub", "rsub"), glue.difference),
    "pow": glue.power,
    **dict.fromkeys(("transpose", "permute", "t"), glue.turned),
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), glue.reshaped),
    "cat": glue.joined,
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes", "unbind", "chunk"), glue.parted),
    "arange": glue.positions,
    "embedding": glue.looked_up,
    "slice": glue.sliced,
    "select": glue.chosen,
    **dict.fromkeys(("addmm", "mm", "bmm", "linear"), lambda op, place: products(op, place)),
}  # fmt: skip


def everywhere(cause: Cause, op: Op, ops: Mapping[Any, Op]) -> Causes:
    """Make a mistake both times in a line of the user's that is run twice, on queries and keys."""
    alike = [other.key for other in ops.values() if op.line and (other.line, other.kind) == (op.line, op.kind)]
    apart = len(alike) // 2
    if not alike or len(alike) % 2 or alike.index(op.key) >= apart:
        return
    other = alike[alike.index(op.key) + apart]

    def both(change: Change) -> Change:
        return change._replace(ops={**change.ops, other: change.ops[op.key]}) if op.key in change.ops else change

    made = cause.change
    yield cause._replace(change=both(made) if isinstance(made, Change) else lambda x: both(made(x)))


def products(op: Op, place: Place) -> Causes:
    """Give the mistakes of a product of matrices: no bias, one not transposed."""
    dense = f"{place.framework}.Dense" if place.framework == "nn" else "nnx.Linear"
    if op.kind == "addmm":
        yield Cause("bias-missing", "Flax adds no bias, PyTorch does", f"{dense}(..., use_bias=True)", edited(
            op, lambda now: torch.mm(now.args["mat1"], now.args["mat2"])))  # fmt: skip
    right = op.args["mat2"]
    if right.shape[-1] == right.shape[-2] > 1:
        code = "kernel-not-transposed" if op.kind != "bmm" else "attention-heads"
        change = edited(op, lambda now: now.compute(mat2=now.args["mat2"].transpose(-1, -2)))
        yield Cause(code, "Flax has the matrix transposed", "kernel = PyTorch's weight.T", change)


def inserted(source: Source, tape: Tape, place: Place, first: bool) -> Causes:
    """Give what Flax may do to an array where PyTorch does nothing: an activation, a factor, another order."""
    held = tape.ops[source].outputs[0] if isinstance(source, tuple) else tape.held.get(source)
    if not isinstance(held, torch.Tensor) or not held.is_floating_point() or held.ndim < 2:
        return
    preprocessing = isinstance(source, str) and source.startswith("input ")

    def then(function: Callable[..., Any]) -> Change:
        return followed(source, tape, function)

    after = where(source)
    code = "attention-scale" if place.attention else "input-scale" if preprocessing else "scale"
    yield Cause(code, f"Flax multiplies {after} by {{x:.9g}}, PyTorch does not", "leave the factor out",
                lambda x: then(lambda t: t * x), (1.0,))  # fmt: skip
    if preprocessing:
        yield Cause("input-scale", "Flax adds {x:.9g} to the input, PyTorch does not", "leave it out",
                    lambda x: then(lambda t: t + x), (0.0,))  # fmt: skip
    axes = range(1, held.ndim)
    for axis in axes:
        size = held.shape[axis]
        if size > 1:
            channels = preprocessing and axis == 1
            code = "channels-reversed" if channels else "flatten-order"
            text = f"Flax has the channels of {after} in the order B, G, R" if channels else (
                f"Flax has {after} turned round along PyTorch's axis {axis}")  # fmt: skip
            yield Cause(code, text, "x[..., ::-1] undoes it" if channels else f"leave out the flip along axis {axis}",
                        then(lambda t, a=axis: t.flip(a)))  # fmt: skip
    if not first:
        return
    for axis in axes:
        for shift in (1, -1) if held.shape[axis] > 2 else ():
            yield Cause("position-offset", f"Flax has {after} shifted by {shift} along PyTorch's axis {axis}",
                        "leave out the shift", then(lambda t, s=shift, a=axis: t.roll(s, a)))  # fmt: skip
        for other in range(axis + 1, held.ndim):
            if held.shape[axis] == held.shape[other] > 1:
                text = f"Flax has axes {axis} and {other} of {after} (as PyTorch counts) swapped"
                yield Cause("flatten-order", text, "leave out the transpose",
                            then(lambda t, a=axis, b=other: t.transpose(a, b).contiguous()))  # fmt: skip
    for name, function in FUNCTIONS.items():
        yield Cause("activation", f"Flax applies {name} to {after}, PyTorch nothing", "leave it out", then(function))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield Cause("precision", f"Flax rounds {after} to {name}", f"leave out astype({name})", then(
            lambda t, d=dtype: t.to(d).to(t.dtype)))  # fmt: skip
    for name, taken in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        yield Cause("activation", f"Flax takes the {name} of {after}, PyTorch does not", "leave it out", then(
            lambda t, f=taken: f(t, -1)))  # fmt: skip
    for axis, eps in product((-1, 1), (1e-6, 1e-5)):
        yield Cause("layer-missing", f"Flax normalises {after} once more, PyTorch does not", "leave the norm out", then(
            lambda t, a=axis, e=eps: F.layer_norm(t.movedim(a, -1), (t.shape[a],), eps=e).movedim(-1, a)))  # fmt: skip


def followed(source: Source, tape: Tape, function: Callable[..., Any]) -> Change:
    """Apply a function to the output of an operation or a call, or to an input."""
    if isinstance(source, tuple):
        return edited(tape.ops[source], lambda now: _first(now.compute(), function))
    if source.startswith("input "):
        return Change(inputs={source.removeprefix("input "): function})
    return Change(calls={source: lambda module, args, kwargs, output: function(output)})


def added(source: Source, tape: Tape, place: Place) -> Causes:
    """Give other arrays that Flax may add to one: a residual that PyTorch does not have."""
    held = tape.ops[source].outputs[0] if isinstance(source, tuple) else tape.held[source]
    if not isinstance(held, torch.Tensor) or not held.is_floating_point() or str(source).startswith("input "):
        return
    order = {key: i for i, key in enumerate(tape.ops)}
    limit = order[source] if isinstance(source, tuple) else len(order)
    known: dict[Source, Any] = {**place.held, **{k: op.outputs[0] for k, op in place.ops.items() if order[k] <= limit}}
    alike = {s: t for s, t in known.items() if isinstance(t, torch.Tensor)
             and t.shape == held.shape and t.is_floating_point()}  # fmt: skip
    for other, tensor in [*alike.items()][::-1][:NEAREST]:
        what = "it" if other == source else where(other)
        change = followed(source, tape, lambda t, value=tensor: t + value)
        yield Cause("residual", f"Flax adds {what} to {where(source)}, PyTorch does not", "leave the sum out", change)


def elsewhere(source: Source, target: Target, tape: Tape) -> Causes:
    """Give a place that Flax goes on from, leaving out what PyTorch does after it."""
    calls, right = list(tape.layers), tape.truth[target]
    alike = [s for s, t in tape.held.items() if s in tape.layers and s != source and t.shape == right.shape]
    if not isinstance(source, tuple):
        return
    for other in reversed(alike):
        rest = calls[calls.index(str(other)) + 1 :]
        label = next((c.replace("/", ".") for c in rest if c not in tape.fed and c != target.name), "")
        text = f"Flax goes on from {where(other)}; what PyTorch does after it, {label or 'a function'}, is left out"
        change = Change(ops={source: lambda now, value=tape.held[other]: value.clone()})
        yield Cause("layer-missing", text, f"call {label}'s port" if label else "add it", change, layer=label)


def where(source: Source) -> str:
    """Name the source of an array."""
    if isinstance(source, tuple):
        return f"the output of {source[0].replace('/', '.') or 'the operation before'}"
    if source.startswith("what "):
        return source.replace("/", ".")
    return "the input" if source.startswith("input ") else f"the output of {source.replace('/', '.')}"


def _first(made: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to the first output of an operation."""
    return function(made) if isinstance(made, torch.Tensor) else [function(made[0]), *made[1:]]


def twice(names: list[str], ops: dict[Any, Op], tape: Tape) -> Causes:
    """Give a layer or a block that Flax calls once more, with the activation after it or without."""
    for name in names:
        label, layer = name.replace("/", "."), tape.layers[name]
        words = "layer-twice", f"Flax applies {label} twice, PyTorch once", f"call {label} once"
        again = Change(calls={name: lambda module, args, kwargs, output: module(output, *args[1:], **kwargs)})
        yield Cause(*words, again, layer=label)
        for op in ops.values():
            if op.kind in functions.ACTIVATIONS and op.sources == {name}:
                both = edited(op, lambda now, m=layer: now.compute(self=m(now.compute())))
                yield Cause(*words, both, layer=label)


def missing(name: str, tape: Tape) -> Causes:
    """Give a layer or a block that Flax leaves out."""
    label, kind = name.replace("/", "."), type(tape.layers[name]).__name__
    skip = Change(calls={name: lambda module, args, kwargs, output: args[0].clone()})
    yield Cause("layer-missing", f"Flax has no {kind} here, PyTorch has {label}", f"call {label}'s port here", skip,
                layer=label)  # fmt: skip


def heads_of_views(ops: dict[Any, Op]) -> Iterator[Cause]:
    """Give another number of heads, or heads last, where all are split by hand."""
    splits = dict[tuple[int, int], list[Op]]()
    pairs = {source for op in ops.values() if op.kind == "view_as_complex" for source in op.sources}
    for op in (op for key, op in ops.items() if key not in pairs):
        if op.kind in ("view", "_unsafe_view") and op.outputs[0].ndim == op.input.ndim + 1 and op.input.ndim > 2:
            *lead, heads, width = op.outputs[0].shape
            if lead == [*op.input.shape[:-1]]:
                splits.setdefault((heads, width), []).append(op)
    for (heads, width), some in splits.items():
        whole = heads * width
        scales = [(op, power) for op in ops.values() for power in (-0.5, 0.5) if op.kind in ("mul", "div")
                  and isinstance(op.args["other"], float) and isclose(op.args["other"], width**power)]  # fmt: skip
        for count in (c for c in range(1, whole + 1) if whole % c == 0 and c != heads and len(some) > 1):
            edits = {op.key: lambda now, c=count: now.input.unflatten(-1, (c, -1)) for op in some}
            scaled = {op.key: lambda now, x=(whole // count) ** power: now.compute(other=x) for op, power in scales}
            text = f"Flax has {count} heads, PyTorch {heads}"
            yield Cause("attention-heads", text, f"num_heads={heads}", Change(ops=edits))
            yield Cause("attention-heads", text, f"num_heads={heads}", Change(ops={**edits, **scaled}))
        # In memory as PyTorch's, else the operations that follow are others.
        turn = lambda now, size=(width, heads): now.input.unflatten(-1, size).transpose(-1, -2).contiguous()  # noqa: E731
        edits = {op.key: turn for op in some}
        text = "Flax splits the last axis into (features, heads), PyTorch into (heads, features)"
        yield Cause("attention-heads", text, f"reshape(..., {heads}, {width})", Change(ops=edits))
        merges = [op for op in ops.values() if op.kind in ("view", "_unsafe_view")
                  and op.input.shape[-2:] == (heads, width) and op.outputs[0].shape[-1] == whole]  # fmt: skip
        back = {op.key: lambda now: now.input.transpose(-1, -2).flatten(-2) for op in merges}
        yield Cause("attention-heads", text, f"reshape(..., {heads}, {width})", Change(ops={**edits, **back}))


def spare_weights(tape: Tape, place: Place, unmatched: dict[str, torch.Tensor]) -> Causes:
    """Give a layer that Flax leaves out, where the next has a kernel of another shape for it."""
    for theirs, weight in unmatched.items():
        for ours, kernel in place.spare.items():
            if kernel.ndim != weight.ndim or kernel.ndim < 2:
                continue
            state = {theirs: as_torch(kernel, weight.dtype)}
            for other in (n.rpartition(".")[0] for n in unmatched if n.endswith(".weight") and n != theirs):
                if (call := other.replace(".", "/")) in tape.layers:
                    skip = {call: lambda module, args, kwargs, output: args[0].clone()}
                    text = f"Flax has no {other}, and {ours} takes what comes before it"
                    yield Cause("layer-missing", text, f"call {other}'s port here", Change(calls=skip, state=state),
                                layer=other)  # fmt: skip
