"""A Flax module at work: inputs and outputs of every call of every submodule, and other operations in their place."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

Operation = Callable[..., Array]  # (module, its own call, inputs ...) -> output


class Trace(NamedTuple):
    """What was seen, in the order in which the calls ended; a module's second call is named `block/conv#1`."""

    calls: OrderedDict[str, tuple[Array, Array]]  # first input and output
    masks: OrderedDict[str, Array]  # which elements each dropout kept


def run(apply: Callable[[], Any], operations: Mapping[str, Operation]) -> tuple[Any, Trace]:
    """Call `apply`, which applies a module, and return its result and the trace. It can be jitted."""
    trace = Trace(OrderedDict(), OrderedDict())  # ordered, since JAX returns a dict with its keys sorted

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return call(*args, **kwargs)
        path = "/".join(module.path)
        layer = partial(operations[path], module, call) if path in operations else call
        output = layer(*args, **kwargs)
        name = unique(path, trace.calls)
        if "Dropout" in type(module).__name__:
            trace.masks[name] = layer(jnp.ones_like(args[0]), *args[1:], **kwargs) != 0
        trace.calls[name] = args[0], output
        return output

    with nn.intercept_methods(intercept):
        return apply(), trace


def unique(path: str, calls: Mapping[str, Any]) -> str:
    """Name a call by its module's path, numbered if there was one before."""
    count = sum(name.partition("#")[0] == path for name in calls)
    return f"{path}#{count}" if count else path
