"""Choose cpu, gpu or tpu before JAX starts, and describe what it started on."""

import os
import re

import jax

from jaxcnn.errors import UserError

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # our name: JAX's
INSTALL = "on a machine with {}, `make setup EXTRA={}` or pip install 'jax[{}]'; or leave --platform out"
MACHINES = {"gpu": ("an NVIDIA GPU that `nvidia-smi` lists", "cuda", "cuda12"), "tpu": ("a TPU", "tpu", "tpu")}
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
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if platform is not None:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as problem:
        reason = re.split(r"[\n:]", str(problem) or "none found")[0]
        asked = platform or os.environ.get("JAX_PLATFORMS", "?")
        where = f"--platform {asked}" if platform else "JAX_PLATFORMS"
        todo = INSTALL.format(*MACHINES[asked]) if asked in MACHINES else "unset JAX_PLATFORMS"
        raise UserError(f"JAX has no {asked} here ({reason})", where, todo) from None


def start_for(batch_size: int, platform: str | None = None) -> list[jax.Device]:
    """Start JAX and return the devices that share a batch if nobody chooses: one, of a CPU as many as are faster.

    A CPU's are virtual, at most one a core. With two on two cores a step of speedrun, 1,000 images, takes 0.92 s for
    1.35 with one, the tutorial's 0.32 for 0.40 on 512 images, but 43 ms for 27 on 32.
    """
    most = max(1, min(os.cpu_count() or 1, batch_size // FEW_IMAGES))
    devices = start(platform, max(count for count in range(1, most + 1) if batch_size % count == 0))
    return devices if devices[0].platform == "cpu" else devices[:1]


def describe(devices: list[jax.Device], precision: str) -> str:
    """Return a line that names the devices, JAX's version and the precision of matrix products."""
    name = "gpu" if devices[0].platform == "cuda" else devices[0].platform
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    tf32 = "float32 (TF32 off)" if precision == "float32" else f"{precision}, parameters float32"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count}{name} ({devices[0].device_kind}){processes}, jax {jax.__version__}, {tf32}"
