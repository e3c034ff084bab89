"""One device or many: a mesh with one axis, state and data replicated, each batch divided.

Of several processes, only process 0 reads and writes the run, prints, and decides what all must do alike.
"""

import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError

AXIS = "batch"


def make_mesh(devices: list[jax.Device], count: int | None, batch_size: int) -> Mesh:
    """Return a mesh over the first `count` devices of each process, or over all of them if it is None."""
    processes = sorted({device.process_index for device in devices})
    by_process = [[device for device in devices if device.process_index == process] for process in processes]
    fewest = min(map(len, by_process))
    count = count or fewest
    if count > fewest:
        raise UserError(f"{count} devices asked for, {fewest} there", "--devices", "ask for fewer")
    size = count * len(by_process)
    if batch_size % size:
        low = batch_size // size * size
        near = " or ".join(str(multiple) for multiple in (low, low + size) if multiple)
        raise UserError(f"a batch of {batch_size} does not divide among {size} devices", "--batch-size", f"take {near}")
    return Mesh(np.array([device for local in by_process for device in local[:count]]), (AXIS,))


def divided(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its images divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a pytree that is the same in every process to every device of the mesh."""

    # Not device_put, which sends every array to all processes to compare it with theirs.
    def copy(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, PartitionSpec()), lambda _: array)

    return jax.tree.map(copy, tree)


def is_first() -> bool:
    """Return whether this is process 0, or the only one: it reads and writes the run directory."""
    return jax.process_index() == 0


# Process 0's arrays in every process. Each passes a pytree of the same shapes and types.
from_first = multihost_utils.broadcast_one_to_all


def text_from_first(text: str) -> str:
    """Return process 0's text in every process."""
    encoded = np.frombuffer(text.encode(), np.uint8)
    length = int(from_first(np.int32(len(encoded))))
    return from_first(np.resize(encoded, length)).tobytes().decode()


def agreed(signum: int | None, *of_first: int) -> tuple[int, ...]:
    """Return a signal that reached any of the processes, 0 for none, and then process 0's other numbers."""
    numbers = (signum or 0, *map(int, of_first))
    if jax.process_count() == 1:
        return numbers
    rows = multihost_utils.process_allgather(np.array(numbers, np.int32))
    return (int(rows[:, 0].max()), *map(int, rows[0, 1:]))


def check_same(mesh: Mesh, **arrays: np.ndarray) -> None:
    """Raise UserError if this process has other arrays, or another number of devices, than process 0."""
    if jax.process_count() == 1:
        return
    marks = [mesh.size, *(zlib.crc32(np.ascontiguousarray(array).data) for array in arrays.values())]
    rows = multihost_utils.process_allgather(np.array(marks, np.uint32))
    for name, differs in zip(["number of devices", *arrays], rows[jax.process_index()] != rows[0], strict=True):
        if differs:
            where = f"process {jax.process_index()}"
            raise UserError(f"another {name} than in process 0", where, "give every process the same")
