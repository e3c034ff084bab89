"""A layer of Flax during its call: the names of its variables, and how it is run with others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn.files import NamedArrays, flat_names
from parity.calls import leaves
from parity.flax_trace import Site
from parity.layouts import Shape
from parity.port import by_collection


@dataclass(frozen=True)
class FlaxLayer:
    """One call of a module that has variables of its own."""

    site: Site
    call: Callable[..., Any]
    args: Any
    kwargs: Any
    keys: Mapping[str, str]  # its variables: as the layer calls them, and as the whole module does
    shapes: Mapping[str, Shape]  # as the layer has them
    index: int | None  # which slice of the whole module's it has, if a loop stacks them

    @property
    def places(self) -> list[tuple[str, int | None]]:
        """List the places of its variables in the whole module."""
        return [(name, self.index) for name in self.keys.values()]

    @property
    def input(self) -> np.ndarray:
        """Give the first array that it is given."""
        return next((np.asarray(leaf) for _, leaf in leaves([[*self.args], self.kwargs])), np.zeros(()))

    def execute(self, values: NamedArrays) -> Any:
        """Run it with values of the whole module's variables."""
        own = {leaf: jnp.asarray(values[name][... if self.index is None else self.index])
               for leaf, name in self.keys.items()}  # fmt: skip
        module = self.site.module
        if isinstance(module, nn.Module):
            variables = unflatten_dict(
                {f"{self.keys[leaf].partition('/')[0]}/{leaf}": value for leaf, value in own.items()}, sep="/"
            )
            again = module.unbind()[0].apply
            return again(variables, *self.args, method=self.site.method, mutable=[*variables], **self.kwargs)[0]
        from flax import nnx

        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState):
                node.set_value(own["/".join(map(str, path))])
        return self.call(*self.args, **self.kwargs)


def variables_of(module: Any) -> dict[str, Any]:
    """Give the variables of a module that is being called, by collection and path within it."""
    if isinstance(module, nn.Module):
        return flat_names(module.variables)
    from flax import nnx

    return flat_names(by_collection(nnx.state(module, nnx.Not(nnx.RngState))))


def is_cell(module: Any) -> bool:
    """Tell if a module is a step of a recurrent layer: one thing, though its gates are modules."""
    return type(module).__name__.endswith("Cell")
