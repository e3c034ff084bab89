"""Run a PyTorch module with given dropout masks, and record inputs and outputs of every call of every submodule."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from parity.calls import Call, Draw, Trace, leaves, unique

aten = torch.ops.aten
RANDOM = (aten.rand, aten.rand_like, aten.randn, aten.randn_like, aten.uniform_, aten.normal_, aten.bernoulli)


class Around(NamedTuple):
    """What replaces operations, and what is done with the outputs of calls."""

    entering: Callable[[str, nn.Module, Any, Any], None]  # (call, module, args, kwargs)
    operation: Callable[[tuple[str, int], tuple[str, ...], Any, Any, Any], Any]  # (key, calls, function, args, kwargs)
    leaving: Callable[[str, nn.Module, Any, Any, Any], Any]  # (call, module, args, kwargs, output) -> output


def run(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    inputs: tuple[Any, ...],
    masks: Mapping[str, torch.Tensor] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    around: Around | None = None,
) -> tuple[Any, Trace]:
    """Call a module with other parameters and buffers than its own; return its output and the trace.

    masks: what each dropout keeps, by the name of its draw; one that has none keeps all. The module is in training mode
    if they are given, even if none is of a dropout, and in evaluation mode if not.
    around: is given each operation, known by the call that it is made in and its number there, and each call's output.
    """
    watch = _Watch(masks or {}, around)
    module.train(masks is not None)
    with ExitStack() as stack:
        for path, layer in module.named_modules():
            place = path.replace(".", "/")
            before = layer.register_forward_pre_hook(partial(watch.enter, place), with_kwargs=True)
            after = layer.register_forward_hook(partial(watch.leave, place), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)  # for random numbers other than dropout's
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())  # of what it makes while it runs
        torch.set_default_dtype(next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32))
        stack.enter_context(torch.enable_grad())  # else encoder layers are one operation, and no submodule is called
        stack.enter_context(watch)
        return torch.func.functional_call(module, dict(state), inputs, dict(kwargs or {})), watch.trace


class _Watch(TorchDispatchMode):
    """The calls in progress, and what was recorded so far. Every dropout of PyTorch draws by `bernoulli_`."""

    def __init__(self, masks: Mapping[str, torch.Tensor], around: Around | None) -> None:
        super().__init__()
        self.masks, self.trace, self.around = masks, Trace({}, {}, defaultdict(set), []), around
        self.frames: list[tuple[str, dict[str, torch.Tensor]]] = [("", {})]  # paths and inputs, the innermost last
        self.names, self.counts, self.quiet = [""], Counter[str](), False

    def enter(self, path: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.quiet and path:
            self.frames.append((path, {} if self.around else _copies([*args]) | _copies(kwargs)))
            self.names.append(unique(path, self.trace.calls))
            if self.around:
                self.quietly(self.around.entering, self.names[-1], layer, args, kwargs)

    def leave(self, path: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.quiet or not path:
            return output
        (path, inputs), name = self.frames.pop(), self.names.pop()
        self.trace.calls[name] = Call(path, type(layer).__name__, inputs, {} if self.around else _copies(output))
        return self.quietly(self.around.leaving, name, layer, args, kwargs, output) if self.around else output

    def quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what may call modules and operations that are not this run's."""
        self.quiet = True
        try:
            return function(*args)
        finally:
            self.quiet = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.bernoulli_.float:
            name = unique(self.frames[-1][0], self.trace.draws)
            mask = self.masks.get(name)
            keep = args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5)
            after = next(reversed(self.trace.calls), "")
            self.trace.draws[name] = Draw(self.frames[-1][0], after, keep, torch.empty(args[0].shape, device="meta"))
            return args[0].fill_(1.0) if mask is None else args[0].copy_(mask)
        if function.overloadpacket in RANDOM:
            self.trace.unshared.append(self.frames[-1][0])
        if self.around and not self.quiet and function is not aten.detach.default:
            call = self.names[-1]
            self.counts[call] += 1
            key = call, self.counts[call]
            output = self.quietly(self.around.operation, key, (*self.names,), function, args, kwargs or {})
        else:
            output = function(*args, **(kwargs or {}))
        if function in (aten.view.default, aten._unsafe_view.default):
            _note_merges(args[0].shape, output.shape, self.trace.merges)
        return output


def _copies(values: Any) -> dict[str, torch.Tensor]:
    """Copy the tensors in a value by their places: what follows may change them, as `nn.ReLU(inplace=True)` does."""
    return {place: leaf.detach().clone() for place, leaf in leaves(values) if isinstance(leaf, torch.Tensor)}


def _note_merges(before: torch.Size, after: torch.Size, merges: dict[int, set[tuple[int, ...]]]) -> None:
    """Note which axes became one when a tensor changed its shape."""
    sizes, rest = list(after), list(before)
    while sizes and rest:
        group, size = list[int](), sizes.pop(0)
        while rest and (not group or np.prod(group) < size):
            group.append(rest.pop(0))
        if np.prod(group) != size:
            return
        if sum(one > 1 for one in group) > 1:
            merges[size].add(tuple(group))


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Give an array [n, h, w, c] as a tensor [n, c, h, w]; rows stay rows."""
    return torch.from_numpy(np.array(array)).movedim(-1, 1).contiguous()


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """Give a tensor [n, c, h, w] as an array [n, h, w, c]; rows stay rows."""
    return tensor.detach().movedim(1, -1).numpy().copy()
