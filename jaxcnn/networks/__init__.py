"""The networks, each a pure Linen module in a file of its own, and what is known of any network."""

import dataclasses
from functools import partial
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Key

from jaxcnn.files import flat_names
from jaxcnn.networks import tutorial

# Called with images scaled to 0..1 and a DropoutKey or None; its fields include classes, dtype and param_dtype.
Network = Any
Variables = dict[str, Any]  # {"params": {"conv1": {"kernel": ..., "bias": ...}, ...}}, and other collections

NETWORKS: dict[str, type[nn.Module]] = {"tutorial": tutorial.CNN}
TYPES = ("dtype", "param_dtype", "parent", "name")  # fields that say how a network is computed, not what it is


def describe(network: Network) -> dict[str, Any]:
    """Say what a network is, for a file: its name among NETWORKS and its fields."""
    name = next(name for name, kind in NETWORKS.items() if type(network) is kind)
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    return {"name": name, **{field: value for field, value in fields.items() if field not in TYPES}}


def build(description: dict[str, Any]) -> Network:
    """Make the network of a description; KeyError or TypeError if none of ours is described."""
    fields = dict(description)
    network = NETWORKS[fields.pop("name")](**fields)
    if not all(type(value) is int and value > 0 for value in fields.values()):
        raise TypeError(f"sizes that are no positive numbers: {fields}")
    return network


@partial(jax.jit, static_argnums=0)  # one program: operation by operation it takes four seconds
def initial_variables(network: Network, key: Key[Array, ""]) -> Variables:
    """Draw the variables of a network, parameters in its `param_dtype`."""
    return network.init(key, jnp.zeros((1, 32, 32, 3), network.param_dtype))


def parameter_count(variables: Variables) -> int:
    """Count the numbers that the parameters hold."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def variable_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Give the shape of each variable by its name in a file."""
    variables = jax.eval_shape(lambda key: initial_variables(network, key), jax.random.key(0))
    return {name: leaf.shape for name, leaf in named(variables).items()}


def named(variables: Variables) -> dict[str, Any]:
    """Name variables as files do: `conv1/kernel` is a parameter, `batch_stats/norm1/mean` of another collection."""
    others = {collection: tree for collection, tree in variables.items() if collection != "params"}
    return {**flat_names(variables["params"]), **flat_names(others)}


def nested(arrays: dict[str, Any], network: Network) -> Variables:
    """Undo `named`: arrays by name as the variables of a network."""
    others = jax.eval_shape(lambda key: initial_variables(network, key), jax.random.key(0)).keys() - {"params"}
    tree = unflatten_dict(arrays, sep="/")
    variables = {collection: tree.pop(collection) for collection in others if collection in tree}
    return {"params": tree, **variables}
