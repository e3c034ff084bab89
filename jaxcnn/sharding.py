"""One device or many: a mesh with one axis, parameters and data replicated, each batch divided."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError

AXIS = "batch"


def make_mesh(devices: list[jax.Device], count: int, batch_size: int) -> Mesh:
    """A mesh over the first `count` devices; UserError where they are too few, or do not divide the batch."""
    if count > len(devices):
        raise UserError(f"{count} devices asked for, {len(devices)} there", "--devices", "ask for fewer")
    if batch_size % count:
        low = batch_size // count * count
        near = " or ".join(str(size) for size in (low, low + count) if size)
        raise UserError(
            f"a batch of {batch_size} does not divide among {count} devices", "--batch-size", f"take {near}"
        )
    return Mesh(np.array(devices[:count]), (AXIS,))


def divided(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: its images divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of a pytree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
