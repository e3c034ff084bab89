"""The networks, each a pure Linen module in a file of its own, and functions of any network."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Key

from jaxcnn import cpu
from jaxcnn.files import flat_names
from jaxcnn.networks import speedrun, tutorial

# Called with images scaled to 0..1 and a BatchKey or None; its fields include classes, dtype and param_dtype.
Network = Any
Variables = dict[str, Any]  # {"params": {"conv1": {"kernel": ..., "bias": ...}, ...}}, and other collections

NETWORKS: dict[str, type[nn.Module]] = {
    "tutorial": tutorial.CNN,
    "speedrun": speedrun.Speedrun,
}  # each with `from_shapes`, for files of others
COMPUTATION = ("dtype", "param_dtype", "parent", "name")  # fields that do not say what a network is
COLLECTIONS = ("batch_stats", "constants")  # of variables that are no parameters


def describe(network: Network) -> dict[str, Any]:
    """Describe a network: its name among NETWORKS and its sizes."""
    return {"name": next(name for name, kind in NETWORKS.items() if type(network) is kind), **sizes(network)}


def sizes(network: Network) -> dict[str, Any]:
    """List the fields that say what a network is, without those of its computation."""
    fields = (field.name for field in dataclasses.fields(network))
    return {name: getattr(network, name) for name in fields if name not in COMPUTATION}


def widths(network: Network) -> tuple[int, ...]:
    """List the sizes of a network, without the number of its classes."""
    return tuple(size for name, size in sizes(network).items() if name != "classes")


def build(description: Any) -> Network | None:
    """Make the network of a description; None if it is incomplete. Raise KeyError for an unknown name."""
    if not isinstance(description, dict) or not isinstance(description.get("name"), str):
        return None
    kind = NETWORKS[description["name"]]
    given = {field: size for field, size in description.items() if field != "name"}
    is_whole = given.keys() == sizes(kind()).keys()
    return kind(**given) if is_whole and all(type(size) is int and size > 0 for size in given.values()) else None


@partial(jax.jit, static_argnums=0)  # as one program: operation by operation it takes four seconds
def initial_variables(network: Network, key: Key[Array, ""]) -> Variables:
    """Draw the variables of a network, parameters in its `param_dtype`."""
    return network.init(key, jnp.zeros((1, 32, 32, 3), network.param_dtype))


def network_logits(network: Network, variables: Variables, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
    """Compute the logits of scaled images, dropout off; on the CPU the stage `features`, if there is one, in chunks."""
    if not all(callable(getattr(network, stage, None)) for stage in ("features", "classify")):
        return network.apply(variables, x)
    features = partial(network.apply, method="features")
    return network.apply(variables, cpu.in_chunks(features, cpu.EVALUATED)(variables, x), method="classify")


def parameter_count(variables: Variables) -> int:
    """Count the parameters' numbers."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def variable_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Give the shape of each variable by its name in a file."""
    variables = jax.eval_shape(partial(initial_variables, network), jax.random.key(0))
    return {name: leaf.shape for name, leaf in named(variables).items()}


def named(variables: Variables) -> dict[str, Any]:
    """Name variables as files do: `conv1/kernel` is a parameter, `batch_stats/norm1/mean` of another collection."""
    others = {name: tree for name, tree in variables.items() if name != "params"}
    return flat_names(variables["params"]) | flat_names(others)


def nested(arrays: Mapping[str, Any]) -> Variables:
    """Undo `named`."""
    tree = unflatten_dict(dict(arrays), sep="/")
    others = {name: tree.pop(name) for name in COLLECTIONS if name in tree}
    return {"params": tree, **others}
