"""Run PyTorch's module again with something changed: an operation, the output of a call, an array of its state.

An operation is identified by the call in which it is made, and its number there. Calls whose PyTorch output was fed to
Flax get it here too, so that both sides go on from the same numbers after each layer.
"""

import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import torch

from parity import torch_trace
from parity.calls import leaves
from parity.given import Given
from parity.pair import named

aten = torch.ops.aten
Key = tuple[str, int]
Source = Key | str  # an operation; or a call that was fed, or an input
Edit = Callable[..., Any]  # an operation with the arguments that it has now -> its output
# Where no code of the user's is; jaxtyping wraps functions.
OURS = tuple(str(Path(str(module.__file__)).parent) for module in (torch, torch_trace, jaxtyping))
SLOW = ("convolution", "addmm", "mm", "bmm", "native_batch_norm", "_scaled_dot_product_flash_attention_for_cpu")


class Op(NamedTuple):
    """One operation of PyTorch."""

    key: Key
    calls: tuple[str, ...]  # in which it is made, the innermost last
    kind: str  # `convolution`; `relu`, in place or not
    function: Any  # that changes nothing in place
    args: dict[str, Any]
    outputs: list[Any]  # none, before it is made
    sources: frozenset[Source] = frozenset()
    line: str = ""  # of the user's code, and where it is

    def compute(self, /, **changes: Any) -> Any:
        """Compute it as it is, or with other arguments."""
        return self.function(**{**self.args, **changes})

    @property
    def input(self) -> torch.Tensor:
        """Give its first argument."""
        return next(iter(self.args.values()))


class Change(NamedTuple):
    """What is done differently."""

    ops: Mapping[Key, Edit] = {}
    calls: Mapping[str, Callable[..., Any]] = {}
    state: Mapping[str, torch.Tensor] = {}
    inputs: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {}

    def also(self, other: "Change") -> "Change":
        """Change both."""
        both: Any = zip(self, other, strict=True)
        return Change(*({**one, **two} for one, two in both))


NOTHING = Change()


class Target(NamedTuple):
    """A place where both sides should have the same array."""

    side: str  # `input` or `output` of a call; or `result`, of the whole module
    name: str


class _Reached(Exception):
    """The run has reached its target."""


class Tape:
    """PyTorch's operations on the random weights, and how they are run again."""

    def __init__(self, given: Given, fed: Mapping[str, torch.Tensor]) -> None:
        self.given, self.fed = given, fed  # what calls give, whatever they compute
        self.ops = dict[Key, Op]()
        self.sources = dict[Target, frozenset[Source]]()
        self.layers = dict[str, Any]()  # the module of each call
        self.held = dict[Source, torch.Tensor]()  # what was fed, and the inputs
        self.tensors = {n: torch.tensor(np.asarray(given.random[n])) for n in given.names}
        for name in given.parameters:  # with gradients, else some layers take another way
            self.tensors[name].requires_grad_()
        record = _Record(self)
        self.truth = self.run(record=record)

    def run(
        self,
        change: Change = NOTHING,
        until: Target | None = None,
        record: "_Record | None" = None,
    ) -> dict[Target, torch.Tensor]:
        """Run it with a change, until a target is reached; give the targets on the way."""
        run = _Run(self, change, until, record)
        x, kwargs = self.given.cast_torch(torch.float64)
        x = tuple(change.inputs[str(i)](value) if str(i) in change.inputs else value for i, value in enumerate(x))
        for place, tensor in leaves([*x]) if record else ():
            record.wrote(tensor, f"input {place}")  # type: ignore[union-attr]
        around = torch_trace.Around(run.entering, run.operation, run.leaving)
        state = {**self.tensors, **change.state}
        try:
            output, _ = torch_trace.run(self.given.modules["float64"], state, x, None, kwargs, 0, around)
            for name, leaf in named(output, "output").items():
                run.reached("result", name, leaf)
        except _Reached:
            pass
        except Exception:
            if change is NOTHING:
                raise  # else what follows the change does not take these shapes
        return run.values

    def slice(self, target: Target) -> Iterator[Source]:
        """List what a target depends on, the nearest first: operations, fed calls and inputs."""
        order = {key: i for i, key in enumerate(self.ops)}
        seen, queue = set[Source](), [*self.sources.get(target, ())]
        while queue:
            queue.sort(key=lambda source: order.get(source, -1))
            source = queue.pop()
            if source not in seen:
                seen.add(source)
                yield source
                queue += self.ops[source].sources if isinstance(source, tuple) else ()


class _Run:
    """A run of a tape with a change, until a target is reached."""

    def __init__(self, tape: Tape, change: Change, until: Target | None, record: "_Record | None") -> None:
        self.tape, self.change, self.until, self.record = tape, change, until, record
        self.values = dict[Target, torch.Tensor]()
        self.changed = bool(change.state or change.inputs)  # whether what follows may come out differently

    def reached(self, side: str, name: str, value: Any) -> None:
        """Note the value of a target, and stop if the run was to end there."""
        wanted = self.until is None or self.until == (side, name)
        tensor = next((t for _, t in leaves(value) if isinstance(t, torch.Tensor)), None) if wanted else None
        if tensor is not None:
            self.values[Target(side, name)] = tensor.detach().clone()
            if self.record:
                self.tape.sources[Target(side, name)] = self.record.written(tensor)
        if self.until == (side, name):
            raise _Reached

    def operation(self, key: Key, calls: tuple[str, ...], function: Any, args: Any, kwargs: Any) -> Any:
        """Do an operation, changed or not; a slow one that comes out as before is taken from the tape."""
        if self.record:
            return self.record.operation(key, calls, function, args, kwargs)
        known, edit = self.tape.ops.get(key), self.change.ops.get(key)
        if edit is None or known is None or known.kind != _functional(function)[0]:
            replaced = any(call in self.tape.fed and (self.until is None or call != self.until.name) for call in calls)
            if (self.changed and not replaced) or known is None or known.kind not in SLOW:
                return function(*args, **kwargs)
            copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in known.outputs]
            return copies[0] if len(copies) == 1 else tuple(copies)
        self.changed = True
        made = edit(Op(key, calls, *_functional(function), _bound(function, args, kwargs), []))
        return args[0].copy_(made) if function._schema.is_mutable else made

    def leaving(self, name: str, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Change the output of a call, and put what is fed in its place."""
        if self.until == ("output", name) and name in self.change.calls:
            output = self.change.calls[name](module, args, kwargs, output)
        self.reached("output", name, output)
        if name in self.tape.fed:
            fed = self.tape.fed[name].clone()
            output = fed if isinstance(output, torch.Tensor) else type(output)((fed, *output[1:]))
            if self.record:
                self.record.wrote(fed, name)
        if name in self.change.calls:
            self.changed = True
            output = self.change.calls[name](module, args, kwargs, output)
        return output

    def entering(self, name: str, module: Any, args: Any, kwargs: Any) -> None:
        """Note a call and what it is given."""
        self.tape.layers[name] = module
        self.reached("input", name, [[*args], kwargs])
        if self.record and name in self.tape.fed and Target("input", name) in self.values:
            self.tape.held[f"what {name} is given"] = self.values[Target("input", name)]


class _Record:
    """A record of which operation has written what, while a module runs."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.writers = dict[int, Source]()
        self.noted = dict[int, list[tuple[list[Any], int]]]()  # outputs, kept as they are when memory is written again
        self.kept = list[Any]()  # memory, so that it is no other tensor's

    def operation(self, key: Key, calls: tuple[str, ...], function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and note it."""
        bound = _bound(function, args, kwargs)
        tensors = [t for _, t in leaves([*bound.values()]) if isinstance(t, torch.Tensor)]
        sources = frozenset[Source]().union(*map(self.written, tensors))
        if function._schema.is_mutable:
            for outputs, index in self.noted.pop(_place(args[0]), []):
                outputs[index] = outputs[index].clone()
            bound = {name: value.clone() if value is args[0] else value for name, value in bound.items()}
        output = function(*args, **kwargs)
        # Others than those that are returned: PyTorch detaches a tensor that somebody else holds.
        outputs = [t.detach() if isinstance(t, torch.Tensor) else t
                   for t in (output if isinstance(output, tuple | list) else [output])]  # fmt: skip
        for index, tensor in enumerate(outputs):
            if isinstance(tensor, torch.Tensor):
                self.wrote(tensor, key)
                self.noted.setdefault(_place(tensor), []).append((outputs, index))
        self.tape.ops[key] = Op(key, calls, *_functional(function), bound, outputs, sources, _line())
        return output

    def wrote(self, tensor: torch.Tensor, source: Source) -> None:
        """Note which source has written a tensor last."""
        self.kept.append(tensor.untyped_storage())
        self.writers[_place(tensor)] = source
        if isinstance(source, str):
            self.tape.held[source] = tensor.detach().clone()

    def written(self, tensor: torch.Tensor) -> frozenset[Source]:
        """Return the sources that have written a tensor."""
        place = _place(tensor)
        return frozenset([self.writers[place]] if place in self.writers else [])


def _line() -> str:
    """Give the line of the user's code that is running; an empty string if there is none."""
    frame: Any = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith(OURS):
        if frame.f_code is inspect.unwrap(torch_trace.run).__code__:
            return ""
        frame = frame.f_back
    if frame is None:
        return ""
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{text}   ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})".lstrip()


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bound(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    schema = function._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema}
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def _functional(function: Any) -> tuple[str, Any]:
    """Give the name of an operation, and the operation that changes nothing in place."""
    packet = function.overloadpacket.__name__
    if not packet.endswith("_") or not function._schema.is_mutable:
        return packet, function
    base = packet.rstrip("_")
    return base, getattr(getattr(aten, base, None), function._overloadname, None) or function
