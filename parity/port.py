"""A Flax port, Linen or NNX: variables by name, and a pure function that applies them."""

import inspect
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.errors import UserError
from jaxcnn.files import flat_names

# What an argument or a field of this name is set to in training; in evaluation to the opposite.
MODES = {
    **dict.fromkeys(("train", "training", "is_training", "is_train", "enable_dropout"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "eval", "is_eval"), False),
}
Variables = dict[str, Any]  # {collection: nested arrays}


@dataclass(frozen=True, eq=False)
class Port:
    """A Linen or an NNX module as a function of its variables."""

    module: Any
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flags: tuple[str, ...] = field(init=False)  # of its call, that we set
    settings: tuple[str, ...] = ()  # fields of the module, that we set
    no_flags = "it has no argument for training"
    framework = "nn"  # what its layers are called by

    def __post_init__(self) -> None:
        parameters = inspect.signature(type(self.module).__call__).parameters
        flags = [name for name in MODES if name in parameters and name not in self.kwargs]
        object.__setattr__(self, "flags", tuple(flags))

    @property
    def unset(self) -> list[str]:
        """List arguments of the call that are true or false, and that nobody set: one may choose the mode."""
        parameters = inspect.signature(type(self.module).__call__).parameters.values()
        known = {*self.flags, *self.kwargs}
        return [p.name for p in parameters if isinstance(p.default, bool) and p.name not in known]

    def call_kwargs(self, train: bool) -> dict[str, Any]:
        """Make the keyword arguments of the call in a mode."""
        return {**self.kwargs, **{name: MODES[name] == train for name in self.flags}}


class LinenPort(Port):
    """A Linen module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {one.name for one in fields_of(self.module)}
        object.__setattr__(self, "settings", tuple(n for n in MODES if n in own and n not in self.flags))

    def shapes(self) -> Variables:
        """Give the shapes and dtypes of all variables, in the module's own precision."""
        with jax.enable_x64(False):  # else what an initialiser makes without a dtype does not fit these inputs
            return {**jax.eval_shape(self._init, jax.random.key(0))}

    def initial(self, seed: int = 0) -> Variables:
        """Make the initial variables."""
        with jax.enable_x64(False):
            return {**self._compiled(jax.random.key(seed))}

    def initial_of(self, names: Container[str]) -> dict[str, Any]:
        """Make the initial values of some variables, which is faster than making all."""
        some = lambda key: {n: a for n, a in flat_names(self._init(key)).items() if n in names}  # noqa: E731
        with jax.enable_x64(False):
            return jax.jit(some)(jax.random.key(0))

    @cached_property
    def _compiled(self) -> Callable[[Any], Any]:
        return jax.jit(self._init)

    def _init(self, key: Any) -> Any:
        inputs = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf)) if hasattr(leaf, "dtype") else leaf, self.inputs
        )
        return self._in_mode(False).init(self._rngs(key), *inputs, **self.call_kwargs(False))

    def collections(self, variables: Any) -> Variables:
        """Give variables of the user's by collection."""
        return {**variables} if "params" in variables else {"params": variables}

    def apply(self, variables: Variables, inputs: tuple[Any, ...], key: Any, train: bool) -> tuple[Any, Variables]:
        """Apply the module: its output, and its variables after that."""
        mutable = [name for name in variables if name != "params"]  # in evaluation too, where a wrong port changes them
        output, updated = self._in_mode(train).apply(
            variables, *inputs, rngs=self._rngs(key), mutable=mutable, **self.call_kwargs(train)
        )
        return output, {**variables, **updated}

    def _in_mode(self, train: bool) -> nn.Module:
        return self.module.clone(**{name: MODES[name] == train for name in self.settings})

    def _rngs(self, key: Any) -> dict[str, Any]:
        return {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", "dropout"))}


class NNXPort(Port):
    """An NNX module."""

    no_flags = "deterministic and use_running_average of all its modules"
    framework = "nnx"

    def _split(self) -> tuple[Any, Any, Any]:
        from flax import nnx

        return nnx.split(self.module, nnx.Not(nnx.RngState), ...)

    def shapes(self) -> Variables:
        """Give the shapes and dtypes of all variables."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.initial())

    def initial(self, seed: int = 0) -> Variables:
        """Give the values that the module holds, whatever the seed."""
        return by_collection(self._split()[1])

    def initial_of(self, names: Container[str]) -> dict[str, Any]:
        """Give the values that the module holds, of some variables."""
        return {name: array for name, array in flat_names(self.initial()).items() if name in names}

    def collections(self, variables: Any) -> Variables:
        """Give variables of the user's, a state or another module that holds them, by collection."""
        from flax import nnx

        state = nnx.state(variables, nnx.Not(nnx.RngState)) if isinstance(variables, nnx.Module) else variables
        return by_collection(state) if isinstance(state, nnx.State) else {**variables}

    def apply(self, variables: Variables, inputs: tuple[Any, ...], key: Any, train: bool) -> tuple[Any, Variables]:
        """Apply the module: its output, and its variables after that."""
        from flax import nnx

        graph, state, random = self._split()
        new = flatten_dict(variables)
        state = nnx.from_flat_state(
            [(p, v.replace(new[_collection(v), *map(str, p)])) for p, v in nnx.to_flat_state(state)]
        )
        streams = iter(range(2**31))

        def fresh(variable: Any) -> Any:  # a new one, which may change where the module's own may not
            old = variable.get_value()
            return variable.replace(jax.random.fold_in(key, next(streams)) if isinstance(variable, nnx.RngKey) else old)

        random = jax.tree.map(fresh, random, is_leaf=lambda v: isinstance(v, nnx.Variable))
        module = nnx.merge(graph, state, random)
        modes = {name: MODES[name] == train for name in ("deterministic", "use_running_average")}
        module.set_attributes(**modes, raise_if_not_found=False)
        output = module(*inputs, **self.call_kwargs(train))
        return output, by_collection(nnx.state(module, nnx.Not(nnx.RngState)))


def _collection(variable: Any) -> str:
    from flax.nnx import variablelib

    return variablelib.variable_name_from_type(type(variable), allow_register=True)


def by_collection(state: Any) -> Variables:
    """Give an NNX state as Linen has it: {collection: nested arrays}, all names strings."""
    from flax import nnx

    return unflatten_dict({(_collection(v), *map(str, p)): v.get_value() for p, v in nnx.to_flat_state(state)})


def port_of(module: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinenPort | NNXPort:
    """Make the port of a Flax module. UserError if it is not one."""
    if isinstance(module, nn.Module):
        return LinenPort(module, inputs, kwargs)
    if "flax.nnx" in sys.modules and isinstance(module, sys.modules["flax.nnx"].Module):
        return NNXPort(module, inputs, kwargs)
    raise UserError("neither a Linen nor an NNX module", type(module).__name__, "give an instance of flax's Module")
