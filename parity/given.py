"""Prepare what the user gave: both modules as functions of their variables, which change nothing of the user's."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays, flat_names
from parity import flax_trace, torch_trace
from parity.calls import Trace, as_numpy, leaves
from parity.port import Variables, port_of


class Given:
    """A PyTorch module, a Flax module and their inputs."""

    def __init__(
        self,
        torch_module: nn.Module,
        flax_module: Any,
        inputs: tuple[Any, ...],
        flax_inputs: tuple[Any, ...] | None = None,
        torch_kwargs: Mapping[str, Any] | None = None,
        flax_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(torch_module, nn.Module):
            raise UserError("not a PyTorch module", type(torch_module).__name__, "give an instance of torch.nn.Module")
        self.inputs = jax.tree.map(lambda v: as_numpy(v) if isinstance(v, torch.Tensor) else v, tuple(inputs))
        if hasattr(flax_inputs, "shape"):
            flax_inputs = (flax_inputs,)
        self.flax_inputs = jax.tree.map(channels_last, self.inputs) if flax_inputs is None else tuple(flax_inputs)
        if any(0 in leaf.shape for _, leaf in leaves([*self.inputs])):
            raise UserError("an input has no elements", type(torch_module).__name__, "give a batch of two or more")
        if any(np.isnan(as_numpy(leaf)).any() for _, leaf in leaves([*self.inputs])):
            raise UserError("an input holds NaN", type(torch_module).__name__, "give numbers")
        self.torch_kwargs, self.flax_kwargs = dict(torch_kwargs or {}), dict(flax_kwargs or {})
        half = [name for name, t in torch_module.state_dict().items() if t.dtype in (torch.float16, torch.bfloat16)]
        if half:
            raise UserError(f"the parameters are of half precision ({half[0]})", type(torch_module).__name__,
                            "give module.float(): float64 is what decides")  # fmt: skip
        if complexes := [name for name, t in torch_module.state_dict().items() if t.is_complex()]:
            raise UserError(f"the parameters are complex numbers ({complexes[0]})", type(torch_module).__name__,
                            "only real ones can be compared")  # fmt: skip
        self.name, self.flax_name = type(torch_module).__name__, type(flax_module).__name__
        try:
            self.torch_module = copy.deepcopy(torch_module).cpu()
        except Exception as problem:
            raise UserError(f"it cannot be copied: {' '.join(str(problem).split())}", type(torch_module).__name__,
                            "make a fresh one, and call a lazy one first") from problem  # fmt: skip
        self.modes = [name for name, part in torch_module.named_modules() if part.training != torch_module.training]
        self.tied = _tied(self.torch_module)
        self.same_shapes = False  # Flax takes PyTorch's arrays only where its own have their shapes
        self.state: NamedArrays = {
            name: t.detach().numpy().copy() for name, t in self.torch_module.state_dict().items()
        }
        self.parameters = [name for name, _ in self.torch_module.named_parameters()]
        for name in self.parameters:
            if not np.isfinite(self.state[name]).all():
                raise UserError(f"{name} holds NaN or infinity", self.name, "give finite weights")
        self.port = port_of(flax_module, self.cast_flax("float32"), self.flax_kwargs)
        self.modules = {name: copy.deepcopy(self.torch_module).to(dtype) for name, dtype in
                        (("float64", torch.float64), ("float32", torch.float32))}  # fmt: skip

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """Give shape and dtype of each Flax variable, by its collection and path. UserError if the call fails."""
        try:
            with lenient():
                variables = self.port.shapes()
        except UserError:
            raise
        except Exception as problem:
            raise self.failed(self.flax_name, problem, self.flax_inputs, self.flax_kwargs) from problem
        if slashed := [name for path in flatten_dict(variables) for name in path if "/" in name]:
            raise UserError(f"a variable's name has a slash in it: {slashed[0]}", self.flax_name,
                            "such modules, flax.linen.WeightNorm among them, cannot be compared")  # fmt: skip
        return flat_names(variables)

    def randomised(self, seed: int = 0) -> NamedArrays:
        """Draw all parameters and running statistics anew: zeros and ones hide many mistakes."""
        rng, drawn = np.random.default_rng(seed), dict[str, Any]()
        parameters = {name for name, p in self.torch_module.named_parameters(remove_duplicate=False) if p.requires_grad}
        for name, array in self.state.items():
            last = name.rpartition(".")[2]
            if name in self.tied and self.tied[name] != name:
                drawn[name] = drawn[self.tied[name]]
            elif array.dtype.kind != "f" or not (name in parameters or last in ("running_mean", "running_var")):
                drawn[name] = array
            elif array.ndim > 1:
                drawn[name] = rng.normal(0, (array.size / len(array)) ** -0.5, array.shape)
            elif last in ("running_var", "weight", "scale"):
                drawn[name] = rng.uniform(0.5, 1.5, array.shape)
            else:
                drawn[name] = rng.normal(0, 0.1, array.shape)
        return {
            name: np.asarray(a, np.float32).astype(np.float64) if a.dtype.kind == "f" else a
            for name, a in drawn.items()
        }

    @cached_property
    def random(self) -> NamedArrays:
        """Give the random weights that both modules are run on first."""
        return self.randomised()

    @cached_property
    def reference(self) -> tuple[Any, Trace]:
        """Run the PyTorch module on them, in float64: Flax's calls are recognised by the result."""
        return self.torch_run(self.random, "float64")

    def cast_flax(self, precision: str) -> tuple[Any, ...]:
        """Give inputs as Flax takes them in a precision."""
        return jax.tree.map(lambda leaf: _cast(leaf, precision, jnp.asarray), self.flax_inputs)

    def cast_torch(self, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give inputs and keyword arguments as PyTorch takes them."""
        return jax.tree.map(lambda leaf: _cast(leaf, dtype, _tensor), (self.inputs, self.torch_kwargs))

    def torch_run(
        self,
        state: Mapping[str, Any],
        precision: str,
        masks: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
    ) -> tuple[Any, Trace]:
        """Call the PyTorch module; return its output and its trace. UserError if its call fails."""
        dtype = getattr(torch, precision)
        tensors = {name: _tensor(state[name], dtype) for name in self.names}
        for name in self.parameters:  # with gradients, else some layers take another code path
            tensors[name].requires_grad_()
        given, kwargs = self.cast_torch(dtype)
        try:
            return torch_trace.run(self.modules[precision], tensors, given, masks, kwargs, seed)
        except Exception as problem:
            raise self.failed(self.name, problem, self.inputs, self.torch_kwargs) from problem

    @cached_property
    def names(self) -> list[str]:
        """List the entries of the `state_dict` that are not another's, in its order."""
        return [name for name in self.state if self.tied.get(name, name) == name]

    def flax_run(
        self, variables: Variables, precision: str, key: int = 0, train: bool = False, **how: Any
    ) -> tuple[tuple[Any, Variables], Trace]:
        """Call the Flax module, and see what it does: (output, its variables after that), and the trace."""
        dtype = "float64" if precision == "float64" else None
        return flax_trace.run(
            partial(self.apply, variables, self.cast_flax(precision), jax.random.key(key), train),
            dtype=dtype,
            drops=train,
            **how,
        )

    def apply(self, variables: Variables, inputs: Any, key: Any, train: bool) -> tuple[Any, Variables]:
        """Apply the Flax module: its output, and its variables after that. UserError if its call fails."""
        try:
            with lenient():
                return self.port.apply(variables, inputs, key, train)
        except UserError:
            raise
        except Exception as problem:
            raise self.failed(self.flax_name, problem, self.flax_inputs, self.flax_kwargs) from problem

    def failed(self, name: str, problem: Exception, inputs: Any, kwargs: Any) -> UserError:
        """Make the error for a module whose call fails: the exception's text, and the inputs."""
        fed = ", ".join(f"{n if n.isalpha() else ''}{'=' if n.isalpha() else ''}{leaf.dtype}{list(leaf.shape)}"
                        for n, leaf in (*leaves([*inputs]), *leaves(dict(kwargs))))  # fmt: skip
        return UserError(f"its call fails: {in_words(problem)}", f"{name}({fed})",
                         "call it yourself with these inputs; flax_inputs= gives the Flax module others")  # fmt: skip


def in_words(problem: Exception) -> str:
    """Say what a user's function raised, in one line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"


@contextmanager
def lenient() -> Iterator[None]:
    """Let a module promote dtypes and ranks, as Flax's own layers do."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def channels_last(array: Any) -> Any:
    """Give an image or a volume, a floating array of 4 or 5 axes, with its channels last; anything else as it is."""
    if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim in (4, 5):
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))
    return array


def _tied(module: nn.Module) -> dict[str, str]:
    """Say for each parameter which one it is: itself, or an earlier one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in module.named_parameters(remove_duplicate=False)}


def _tensor(value: Any, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _cast(value: Any, dtype: Any, make: Any) -> Any:
    """Make a framework's array of an array; leave anything else."""
    if isinstance(value, torch.Tensor):
        value = as_numpy(value)
    if not hasattr(value, "dtype"):
        return value
    if make is _tensor:
        return _tensor(value, dtype)
    return make(value, dtype if np.asarray(value).dtype.kind == "f" else None)
