"""Train with several processes. One that fails says why in one line, and ends the others with it."""

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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

from jaxcnn import streams
from jaxcnn.errors import UserError
from jaxcnn.sharding import is_first

AUTO = "auto"
START_SECONDS = 30  # within which all processes have to connect
SILENCE_SECONDS = 10  # after which a process without a heartbeat counts as dead
LOST = "error: another process ended or cannot be reached ({}): training stops; see what the others said, start all " \
       "again with --resume"  # fmt: skip


def check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Raise UserError if `--coordinator`, `--num-processes` and `--process-id` contradict each other."""
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
    """Join the processes of a job, if there is a coordinator, for as long as the context is open.

    An error ends this process at once, and with it the others: JAX's own shutdown would wait for minutes.
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
    except Exception as problem:
        # Gloo's and NCCL's errors are JaxRuntimeErrors or, on some of JAX's paths, ValueErrors.
        if not isinstance(problem, jax.errors.JaxRuntimeError) and "Gloo" not in str(problem):
            _leave(traceback.format_exc(), 1)
        _leave(LOST.format(str(problem).partition("\n")[0][:200]))


def settle(devices: list[jax.Device]) -> None:
    """Silence every process but the first, except for its errors, once JAX has started."""
    counts = set(Counter(device.process_index for device in devices).values())
    if len(counts) > 1:  # JAX's collectives do not support it
        different = " and ".join(map(str, sorted(counts)))
        raise UserError(f"some processes have {different} devices", "--devices", "give every process the same")
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _connect(coordinator: str, processes: int | None, process: int | None) -> None:
    """Connect to the other processes. Raise UserError if there is no cluster, or if the port is taken."""
    _let_only_python_write()
    job = f"of {processes} processes" if processes else "of the job's processes"
    _on_abort(f"error: not all {job} connected within {START_SECONDS} s: --coordinator {coordinator}; check the "
              "address and that every process runs, each with its own --process-id")  # fmt: skip
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, which `fit` handles
    # With an address, what Slurm or another scheduler says must not be mixed in.
    address, detection = (None, None) if coordinator == AUTO else (coordinator, "deactivate")
    try:
        if process == 0:  # JAX crashes if the port is taken
            socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
        with warnings.catch_warnings(action="error"):
            jax.distributed.initialize(
                address, processes, process, cluster_detection_method=detection,
                initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=SILENCE_SECONDS,
            )  # fmt: skip
    except Exception as problem:
        todo = "choose another port" if address else "give HOST:PORT, --num-processes and --process-id"
        raise UserError(f"cannot start ({problem!s:.200})", f"--coordinator {coordinator}", todo) from None
    _on_abort(LOST.format("no sign of life"))


_messages = sys.stderr
_leaving = threading.Lock()
_handlers: list[Any] = []  # C holds a pointer to each, which Python's garbage collector does not see


def _let_only_python_write() -> None:
    """Silence XLA's threads, which log pages to standard error, and Gloo, which prints on standard output."""
    global _messages
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":  # the user asks for the log
        return
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()
        setattr(sys, name, streams.unfailing(os.dup(descriptor), name))
        os.dup2(null, descriptor)
    _messages = sys.stderr


def _on_abort(message: str) -> None:
    """Print `message` and exit on SIGABRT, with which JAX ends a process that has lost the others."""

    # In C, since JAX aborts on a thread of its own while Python's main thread may be waiting for a device.
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(_: int) -> None:
        time.sleep(1)  # the main thread may have something more specific to say
        _leave(message)

    _handlers.append(handle)
    ctypes.CDLL(None).signal(signal.SIGABRT, handle)


def _leave(message: str, status: int = 2) -> NoReturn:
    """Print `message` and end this process at once. If several threads call this, only the first does it."""
    _leaving.acquire()
    try:
        sys.stdout.flush()
        if message:
            print(message.rstrip(), file=_messages, flush=True)
    finally:
        os._exit(status)
