"""Run a Flax module, Linen or NNX, and record all calls and dropout's draws; operations can be replaced."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from parity.calls import Call, Draw, Trace, leaves, unique

Operation = Callable[..., Array]  # (module, its own call, inputs ...) -> output
BRIDGES = ("ToNNX", "ToLinen", "ToLinenPartial")  # of `flax.nnx.bridge`: what they wrap is called at the same path


class Site(NamedTuple):
    """Where a call is made."""

    name: str  # of the call: its path, numbered if it is not the first
    path: str
    module: Any
    method: str


Around = Callable[[Site, Callable[..., Any], Any, Any], Any]  # (site, the module's own call, args, kwargs) -> output


def in_place(operations: Mapping[str, Operation]) -> Around:
    """Replace the calls of modules by operations, by path."""

    def around(site: Site, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        layer = functools.partial(operations[site.path], site.module, call) if site.path in operations else call
        return layer(*args, **kwargs)

    return around


def repeat(module: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a module that is being called once more, with other inputs."""
    if not isinstance(module, nn.Module):
        return call(*args, **kwargs)
    unbound, variables = module.unbind()
    return unbound.apply(variables, *args, mutable=[*variables], **kwargs)[0]  # a wrong port may change statistics


def run(
    apply: Callable[[], Any], around: Around | None = None, eager: bool = False, dtype: str | None = None,
    drops: bool = True,
) -> tuple[Any, Trace]:  # fmt: skip
    """Call `apply`, which applies a module, and return its result and the trace. It can be jitted if not `eager`.

    eager: loops run step by step and nothing is compiled, so that calls inside `nn.scan` and `nn.remat` are seen too.
    dtype: used by modules that were given another floating type to compute in.
    drops: whether dropout that is on drops values; if not, it is only noted.
    """
    watch = _Watch(around or in_place({}), eager, dtype, drops)
    with ExitStack() as stack:
        if eager:
            stack.enter_context(jax.disable_jit())
            for name in ("checkpoint", "remat"):  # one function
                stack.enter_context(mock.patch.object(jax, name, lambda function, **options: function))
            stack.enter_context(mock.patch.object(jax.lax, "scan", watch.scan(jax.lax.scan)))
        stack.enter_context(mock.patch.object(jax.random, "bernoulli", watch.draw(jax.random.bernoulli)))
        stack.enter_context(nn.intercept_methods(watch.linen))
        if "flax.nnx" in sys.modules:
            stack.enter_context(_nnx_calls(watch.nnx))
        return apply(), watch.trace


class _Watch:
    """The calls in progress, and what was recorded so far."""

    def __init__(self, around: Around, eager: bool, dtype: str | None, drops: bool) -> None:
        self.around, self.eager, self.dtype, self.drops = around, eager, dtype, drops
        self.trace = Trace({}, {})
        self.frames: list[tuple[str, Any, str]] = []  # paths, modules and methods, the innermost last
        self.loops: list[dict[str, Any]] = []
        self.paths: dict[int, tuple[str, Any]] = {}  # of NNX modules by identity; the module, so that it lives

    def linen(self, call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        for one in (module, *(part for part in vars(module).values() if isinstance(part, nn.Module))):
            self.set_dtype(one)  # a loop asks its cell for a first state before it calls it
        if self.loops and self.loops[-1].pop("starts", False):
            _same_counters(module.scope.rng_counters, self.loops[-1])
        outer = next((path for path, frame, _ in reversed(self.frames) if not isinstance(frame, nn.Module)), "")
        return self.see("/".join(filter(None, [outer, *module.path])), module, context.method_name, call, args, kwargs)

    def nnx(self, call: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
        if id(module) not in self.paths:
            self.learn(module)
        return self.see(self.paths[id(module)][0], module, "__call__", call, args, kwargs)

    def scan(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """Make a loop that runs step by step draw what it draws when it is compiled."""

        def scan(body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            loop: dict[str, Any] = {}

            def step(*values: Any) -> Any:
                loop["starts"] = True
                self.loops.append(loop)
                try:
                    return body(*values)
                finally:
                    self.loops.pop()

            return own(step, *args, **kwargs)

        return scan

    def learn(self, module: Any) -> None:
        """Find where an NNX module is that was not seen before: the root, one inside Linen, a copy that a loop made."""
        from flax import nnx

        path, frame, _ = self.frames[-1] if self.frames else ("", None, "")
        if frame is not None and not isinstance(frame, nn.Module):
            alike = [(p, m) for p, m in nnx.iter_graph(frame) if type(m) is type(module) and m is not frame]
            same = [p for p, other in alike if len(alike) > 1 and _same_values(module, other)] or [p for p, _ in alike]
            path = "/".join([path, *map(str, same[0] if same else [type(module).__name__])]).strip("/")
        for place, inner in nnx.iter_graph(module):
            if isinstance(inner, nnx.Module):
                self.set_dtype(inner)
                self.paths[id(inner)] = "/".join(filter(None, [path, *map(str, place)])), inner

    def set_dtype(self, module: Any) -> None:
        """Make a module, a copy of the user's, compute in `dtype` if it was given another floating type."""
        for name in ("dtype", "param_dtype"):  # the second is that of a recurrent layer's first state
            if self.dtype and jnp.issubdtype(vars(module).get(name) or jnp.int32, jnp.floating):
                object.__setattr__(module, name, jnp.dtype(self.dtype))

    def see(self, path: str, module: Any, method: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.frames and self.frames[-1] == (path, module, method):  # `super().__call__`
            return call(*args, **kwargs)
        hidden = type(module).__name__ in BRIDGES
        self.frames.append((path, module, method))
        try:
            if not path or hidden or (method != "__call__" and not self.eager) or self.traced((args, kwargs)):
                return call(*args, **kwargs)
            before, site = len(self.trace.draws), Site(unique(path, self.trace.calls), path, module, method)
            output = self.around(site, call, args, kwargs)
            if not self.drops and len(self.trace.draws) > before and "Dropout" in type(module).__name__:
                output = args[0]
            if method == "__call__" and not self.traced(output):
                own = not type(module).__module__.startswith("flax.") and "Dropout" in type(module).__name__
                if own and len(self.trace.draws) == before:  # it draws in its own way
                    kept = self.around(site, call, (jnp.ones_like(args[0]), *args[1:]), kwargs)
                    self.draws(None, kept != 0)
                name = unique(path, self.trace.calls)
                inputs = dict(leaves([*args])) | dict(leaves(kwargs))
                self.trace.calls[name] = Call(path, type(module).__name__, inputs, dict(leaves(output)))
            return output
        finally:
            self.frames.pop()

    def traced(self, values: Any) -> bool:
        """Tell if values are of a loop that is only being compiled: they mean nothing outside it."""
        return self.eager and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))

    def draw(self, bernoulli: Callable[..., Array]) -> Callable[..., Array]:
        @functools.wraps(bernoulli)
        def drawn(key: Any, p: Any = 0.5, *args: Any, **kwargs: Any) -> Array:
            mask = bernoulli(key, p, *args, **kwargs)
            mask = mask if self.drops else jnp.ones_like(mask)
            if not self.traced(mask):
                self.draws(p, mask)
            return mask

        return drawn

    def draws(self, keep: Any, mask: Any) -> None:
        path = self.frames[-1][0] if self.frames else ""
        after = next(reversed(self.trace.calls), "")
        self.trace.draws[unique(path, self.trace.draws)] = Draw(path, after, keep, mask)


def _same_counters(counters: dict[Any, Any], loop: dict[str, Any]) -> None:
    """Count Linen's draws in each step of a loop as in the first: a compiled loop has only one body."""

    def copied(values: dict[Any, Any]) -> dict[Any, Any]:  # with the same keys, which are known by identity
        return {key: copied(value) if isinstance(value, dict) else value for key, value in values.items()}

    first = loop.setdefault("counters", copied(counters))
    counters.clear()
    counters.update(copied(first))


def _same_values(module: Any, other: Any) -> bool:
    """Tell if an NNX module has another's values, or a slice of what is stacked there."""
    from flax import nnx

    ours, theirs = (jax.tree.leaves(nnx.state(m, nnx.Not(nnx.RngState))) for m in (module, other))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*ours, *theirs)):
        return False
    slices = lambda a, b: [b] if a.shape == b.shape else list(b) if a.shape == b.shape[1:] else []  # noqa: E731
    return all(any(np.array_equal(a, part) for part in slices(a, b)) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _nnx_calls(around: Callable[..., Any]) -> Iterator[None]:
    """Send each call of an NNX module through `around`: (its own call, module, args, kwargs) -> output."""
    from flax import nnx

    def classes(of: Any) -> Iterator[Any]:
        for one in of.__subclasses__():
            yield one
            yield from classes(one)

    with ExitStack() as stack:
        for one in {c for c in classes(nnx.Module) if "__call__" in vars(c)}:
            own = vars(one)["__call__"]
            # A lambda, since each run makes a hundred of them, and the tests would check the annotations of a `def`.
            called = functools.wraps(own)(
                lambda self, *args, own=own, **kwargs: around(functools.partial(own, self), self, args, kwargs)
            )
            stack.enter_context(mock.patch.object(one, "__call__", called))
        yield
