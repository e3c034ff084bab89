"""Choose cpu, gpu or tpu before JAX starts, and describe what it started on."""

import hashlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import jax

from jaxcnn.errors import UserError
from jaxcnn.paths import user_cache

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # our name: JAX's
INSTALL = "on a machine with {}, `make setup EXTRA={}` or pip install 'jax[{}]'; or leave --platform out"
MACHINES = {"gpu": ("an NVIDIA GPU that `nvidia-smi` lists", "cuda", "cuda12"), "tpu": ("a TPU", "tpu", "tpu")}
CPUINFO = Path("/proc/cpuinfo")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
ASYNC = "jax_cpu_enable_async_dispatch"
_process = 0  # the first that called `check_process`
FEW_IMAGES = 250  # for one of a CPU's virtual devices


def start(platform: str | None, cpu_devices: int | None = 1) -> list[jax.Device]:
    """Start JAX and return its devices.

    platform: `cpu`, `gpu` or `tpu`, or None for the best that JAX finds.
    cpu_devices: how many virtual devices to make of the CPU, or None to leave it to JAX.
    Raise UserError if the platform is absent: JAX alone would take another, or end in a traceback (jax#17624).
    """
    # JAX reads both as it starts. Parity shares a GPU's memory with PyTorch, and a repeated run must not differ.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    _check_flags(flags)
    _keep_compiled()
    # Computations on a CPU run in the calling thread. In JAX's own threads, of which there are more than cores, a
    # training step takes 15 ms or 21, and changes from one to the other within a process.
    if ASYNC.upper() not in os.environ:
        with suppress(AttributeError):  # another version's JAX, without this choice
            jax.config.update(ASYNC, False)
    if "xla_gpu_deterministic_ops" not in flags and flags.lstrip()[:1] in ("", "-"):  # else it names a file of flags
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    if cpu_devices is not None:
        with suppress(RuntimeError):  # JAX runs already, as in a notebook, on the devices that it has
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    if platform is not None:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as problem:
        reason = re.split(r"[\n:]", str(problem) or "none found")[0]
        if platform is None:
            asked = os.environ.get("JAX_PLATFORMS", "")
            where = f"the environment variable JAX_PLATFORMS={asked}"
            raise UserError(f"JAX cannot start on {asked}", where, "unset it, or set it to cpu") from None
        todo = INSTALL.format(*MACHINES[platform]) if platform in MACHINES else "start it on another platform"
        raise UserError(f"JAX has no {platform} here ({reason})", f"--platform {platform}", todo) from None
    if platform not in (None, _name(devices[0])):
        what, todo = f"JAX runs on {_name(devices[0])} already", "choose in a process of its own, or leave it out"
        raise UserError(what, f"--platform {platform}", todo)
    return devices


def _name(device: jax.Device) -> str:
    return "gpu" if device.platform == "cuda" else device.platform


def check_process() -> None:
    """Raise UserError in a process that was forked after JAX did something for us: it would hang there."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        todo = "start processes by multiprocessing.get_context('spawn')"
        raise UserError("this process was forked after JAX had started", f"process {os.getpid()}", todo)


def _keep_compiled() -> None:
    """Let JAX cache compiled programs in the user's cache folder, with one folder for each kind of processor.

    JAX's own key does not tell processors apart, and another's code may use instructions that this one lacks. The
    command then reaches the first step of the tutorial's network on the digits in 1.8 s, not 3.7.
    """
    if jax.config.jax_compilation_cache_dir or not CPUINFO.exists():  # type: ignore[attr-defined]  # the user's; no Linux
        return
    kind = sorted({line for line in CPUINFO.read_text().splitlines() if line.startswith(("model name", "flags"))})
    folder = user_cache() / "compiled" / hashlib.sha256("\n".join(kind).encode()).hexdigest()[:16]
    with suppress(OSError):  # no home: it is compiled each time
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _check_flags(flags: str) -> None:
    """Raise UserError if XLA would end the process because of an option that it does not know."""
    if flags in ("", DETERMINISTIC):
        return
    code, environment = "import jax; jax.devices()", {**os.environ, "JAX_PLATFORMS": "cpu"}
    tried = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if tried.returncode:
        reason = re.search(r"\] (.*)", tried.stderr)  # after the place in its source; a usage page may follow
        what = f"XLA refuses its options ({reason[1] if reason else tried.stderr:.200})"
        raise UserError(what, f"the environment variable XLA_FLAGS={flags:.200}", "correct or unset it")


def start_for(batch_size: int, platform: str | None = None) -> list[jax.Device]:
    """Start JAX and return the devices that share a batch by default: one, or on a CPU as many as make it faster.

    A CPU's are virtual, at most one per core. With two on two cores, a step of speedrun on 1,000 images takes 0.92 s,
    with one 1.35; the tutorial's takes 0.32 and 0.40 on 512 images, but 43 ms and 27 on 32.
    """
    most = max(1, min(os.cpu_count() or 1, batch_size // FEW_IMAGES))
    devices = start(platform, max(count for count in range(1, most + 1) if batch_size % count == 0))
    return devices if devices[0].platform == "cpu" else devices[:1]


def describe(devices: list[jax.Device], precision: str) -> str:
    """Return a line that names the devices, JAX's version and the precision of matrix products."""
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    tf32 = "float32 (TF32 off)" if precision == "float32" else f"{precision}, parameters float32"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count}{_name(devices[0])} ({devices[0].device_kind}){processes}, jax {jax.__version__}, {tf32}"
