"""One device or many, one process or many: a mesh with one axis, state and data replicated, each batch divided.

With many processes, process 0 alone reads and writes the run and speaks, and decides what all have to do alike; a
process that fails says so in one line and takes the others with it. With one process all of this costs nothing.
"""

import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError

AXIS = "batch"
AUTO = "auto"
START_SECONDS = 30  # within which all processes have to come
SILENCE_SECONDS = 10  # after which a process that is not heard of counts as dead
LOST = "error: another process ended or cannot be reached ({}): training stops; see what the others said, start all " \
       "again with --resume"  # fmt: skip


def make_mesh(devices: list[jax.Device], count: int | None, batch_size: int) -> Mesh:
    """A mesh over the first `count` devices of each process, all where it is None.

    UserError where they are too few, or do not divide the batch.
    """
    processes = sorted({device.process_index for device in devices})
    own = [[device for device in devices if device.process_index == process] for process in processes]
    fewest = min(map(len, own))
    count = count or fewest
    if count > fewest:
        raise UserError(f"{count} devices asked for, {fewest} there", "--devices", "ask for fewer")
    size = count * len(own)
    if batch_size % size:
        low = batch_size // size * size
        near = " or ".join(str(size) for size in (low, low + size) if size)
        raise UserError(f"a batch of {batch_size} does not divide among {size} devices", "--batch-size", f"take {near}")
    return Mesh(np.array([device for some in own for device in some[:count]]), (AXIS,))


def divided(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: its images divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of a pytree, which every process has the same, on every device of the mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    # Not device_put, which sends every array round all processes, to see whether they have the same.
    def copy(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, everywhere, lambda _: array)

    return jax.tree.map(copy, tree)


def is_first() -> bool:
    """Whether this is the process that reads and writes the run directory: the only one, or process 0."""
    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """Process 0's arrays in every process; each brings a pytree of the same shapes and types."""
    return multihost_utils.broadcast_one_to_all(tree)


def text_from_first(text: str) -> str:
    """Process 0's text in every process."""
    own = np.frombuffer(text.encode(), np.uint8)
    return from_first(np.resize(own, int(from_first(np.int32(len(own)))))).tobytes().decode()


def agreed(signum: int | None, *of_first: int) -> tuple[int, ...]:
    """A signal that came to any process, 0 for none, and then what process 0 says of the rest."""
    own = (signum or 0, *map(int, of_first))
    if jax.process_count() == 1:
        return own
    rows = multihost_utils.process_allgather(np.array(own, np.int32))
    return (int(rows[:, 0].max()), *map(int, rows[0, 1:]))


def check_same(mesh: Mesh, **arrays: np.ndarray) -> None:
    """UserError where this process has another array, or another number of devices, than process 0."""
    if jax.process_count() == 1:
        return
    own = [mesh.size, *(zlib.crc32(np.ascontiguousarray(array).data) for array in arrays.values())]
    first = multihost_utils.process_allgather(np.array(own, np.uint32))[0]
    for name, mine, firsts in zip(["number of devices", *arrays], own, first, strict=True):
        if mine != firsts:
            where = f"process {jax.process_index()}"
            raise UserError(f"another {name} than in process 0", where, "give every process the same")


def check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """UserError where `--coordinator`, `--num-processes` and `--process-id` do not make sense together."""
    flags = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process}
    given = [flag for flag, value in flags.items() if value is not None]
    if coordinator == AUTO and len(given) > 1:
        raise UserError("the cluster itself says how many processes there are", given[1], f"leave {given[1]} out")
    if coordinator == AUTO or not given:
        return
    if coordinator is None or processes is None or process is None:
        missing = [flag for flag in flags if flag not in given]
        raise UserError(f"{given[0]} is not enough", " and ".join(missing), "give all three, or --coordinator auto")
    address = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", coordinator)
    if not address or not 0 < int(address[2]) < 2**16:
        raise UserError(f"{coordinator!r} is not HOST:PORT", "--coordinator", "name process 0's host and a free port")
    if process >= processes:
        raise UserError(f"{process} of {processes} processes", "--process-id", f"take 0 to {processes - 1}")


@contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
    """Be one of the processes of a job, through JAX's own runtime; with no coordinator, alone.

    An error ends this process at once, and by that the others: JAX's own farewell would wait for them for minutes.
    """
    if coordinator is None:
        yield
        return
    try:
        _connect(coordinator, processes, process)
        yield
    except UserError as problem:
        _leave(f"error: {problem}")
    except KeyboardInterrupt:
        _leave("", 130)
    except BrokenPipeError:  # `| head` has seen enough
        _leave("", 0)
    except Exception as problem:
        # What Gloo and NCCL have to say comes as a JaxRuntimeError or, from some paths of JAX, a ValueError.
        if not isinstance(problem, jax.errors.JaxRuntimeError) and "Gloo" not in str(problem):
            _leave(traceback.format_exc(), 1)
        _leave(LOST.format(str(problem).partition("\n")[0][:200]))


def settle(devices: list[jax.Device]) -> None:
    """Once JAX has started: processes other than the first print nothing any more, but an error.

    UserError where the processes have not as many devices each, which JAX's collectives between them want.
    """
    sizes = Counter(device.process_index for device in devices)
    if len(set(sizes.values())) > 1:
        many = " and ".join(map(str, sorted(set(sizes.values()))))
        raise UserError(f"some processes have {many} devices", "--devices", "give every process the same")
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _connect(coordinator: str, processes: int | None, process: int | None) -> None:
    """Meet the other processes; UserError where there is no cluster or no port to be had."""
    _let_only_python_write()
    job = f"of {processes} processes" if processes else "of the job's processes"
    _on_abort(f"error: not all {job} came within {START_SECONDS} s: --coordinator {coordinator}; check the address and "
              "that every process runs, each with its own --process-id")  # fmt: skip
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is `fit`'s
    known: dict[str, Any] = {}
    if coordinator != AUTO:  # and then it is not to be mixed with what Slurm or another would say
        known = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        known["cluster_detection_method"] = "deactivate"
    try:
        if process == 0:
            socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()  # JAX crashes where it is taken
        with warnings.catch_warnings(action="error"):
            jax.distributed.initialize(
                **known, initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=SILENCE_SECONDS
            )
    except Exception as problem:
        todo = "give HOST:PORT, --num-processes and --process-id" if coordinator == AUTO else "choose another port"
        raise UserError(f"cannot start ({problem!s:.200})", f"--coordinator {coordinator}", todo) from None
    _on_abort(LOST.format("no sign of life"))


_messages = sys.stderr
_leaving = threading.Lock()
_kept: list[Any] = []  # C knows the handler, Python would drop it


def _let_only_python_write() -> None:
    """XLA's threads print a wall of log where one line is wanted, and Gloo greets on standard output."""
    global _messages
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":  # somebody wants to read it
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        own = os.dup(stream.fileno())
        os.dup2(nothing, stream.fileno())
        setattr(sys, name, os.fdopen(own, "w", buffering=1))
    _messages = sys.stderr


def _on_abort(message: str) -> None:
    """Say `message` in place of dying by SIGABRT, which is how JAX ends a process that has lost the others.

    A handler in C, since JAX aborts on a thread of its own while Python's main thread may be waiting for a device.
    """

    def last_words(_: int) -> None:
        time.sleep(1)  # the main thread may be about to say something more to the point
        _leave(message)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(last_words))
    ctypes.CDLL(None).signal(signal.SIGABRT, _kept[-1])


def _leave(message: str, status: int = 2) -> NoReturn:
    """End this process now, having said why. Only one thread gets to: the others wait for their end."""
    _leaving.acquire()
    try:
        sys.stdout.flush()
        if message:
            print(message.rstrip(), file=_messages, flush=True)
    finally:
        os._exit(status)
