"""One device or many: a mesh with one axis, parameters and data replicated, each batch divided."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError

AXIS = "batch"


def make_mesh(devices: list[jax.Device], batch_size: int) -> Mesh:
    """A mesh over devices that divide the batch; UserError offering the nearest batch sizes where they do not."""
    if batch_size % len(devices):
        low = batch_size // len(devices) * len(devices)
        near = " or ".join(str(size) for size in (low, low + len(devices)) if size)
        raise UserError(
            f"a batch of {batch_size} does not divide among {len(devices)} devices", "--batch-size", f"take {near}"
        )
    return Mesh(np.array(devices), (AXIS,))


def divided(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: its images divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of a pytree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
