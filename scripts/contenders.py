"""The benchmark's contenders: programs, each in a process of its own, with only its own framework in memory."""

import os
import resource
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from case import Case, Run

from jaxcnn import cli
from jaxcnn.progress import Update

KERNELS = ("torch-product", "jax-product", "addition")  # they measure the machine's speed
SIDE = 2048  # of their matrices


def kernel_runner(kind: str) -> Run:
    """Return a run of one of KERNELS, on float32 matrices as large as the tutorial's weights."""
    import torch

    a, b = torch.rand(2, SIDE, SIDE)
    if kind == "jax-product":
        import jax
        import jax.numpy as jnp

        c, d = map(jnp.asarray, (a.numpy(), b.numpy()))
        product = jax.jit(jnp.matmul)
        once = lambda: product(c, d).block_until_ready()  # noqa: E731
    else:
        once = partial(a.add_, b) if kind == "addition" else partial(torch.mm, a, b)

    def run(steps: int) -> None:
        for _ in range(steps):
            once()

    return run


def runner(contender: str, case: Case) -> Run:
    """Return the run of a contender. Only its own framework is imported."""
    if contender in KERNELS:
        return kernel_runner(contender)
    if contender.startswith("torch"):
        import torch
        from torch_contenders import torch_runner

        torch.set_flush_denormal(True)  # as XLA does: training on noise ends in subnormal numbers, five times as slow
        return torch_runner(case, contender)
    from jax_contenders import flax_runner, jax_runner

    return (flax_runner if contender == "flax" else jax_runner)(case)


run: Run  # of the contender that this process is


def begin(contender: str, case: Case) -> float:
    """Set up a contender in this process, warm it up, and return the seconds of its first step."""
    global run
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a first step compiles
    run = runner(contender, case)
    ms, _ = work(1)
    run(2)
    return ms / 1000


def work(steps: int) -> tuple[float, dict[str, Any]]:
    """Do `steps` steps. Return the milliseconds of one, the process's peak memory and the dispatches."""
    start = time.perf_counter()
    cost = run(steps)
    ms = 1000 * (time.perf_counter() - start) / steps
    return ms, {"peak_mb": peak_mb(), "steps": steps, "dispatches_and_bytes_sent": cost}


def peak_mb() -> float:
    """Return the peak memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other figure is at least the memory of the parent process
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Contender:
    """A process that does a contender's steps when asked."""

    def __init__(self, name: str, case: Case) -> None:
        self.process = ProcessPoolExecutor(1, get_context("spawn"), cli.begin_worker)
        self.facts = {"first_step_s": self.process.submit(begin, name, case).result()}
        self.ms: list[float] = []

    def run(self, steps: int) -> float:
        """Do `steps` steps, and return the milliseconds of one."""
        ms, facts = self.process.submit(work, steps).result()
        self.facts.update(facts)
        return ms


def in_turn(
    names: Iterable[str], case: Case, rounds: int, update: Update
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Time contenders in turn. Return those that run, with their times, and why the others do not."""
    running: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            running[name] = Contender(name, case)
        except Exception as problem:  # torch.compile wants a C++ compiler
            absent[name] = str(problem).partition("\n")[0]
    # At least two to a dispatch, as `fit` takes them.
    steps = {name: max(2, round(1000 / contender.run(1))) for name, contender in running.items()}
    for name, contender in running.items():
        contender.run(steps[name])  # compiles, if the number of images is part of the program
    for _ in range(rounds):
        for name, contender in running.items():
            contender.ms.append(contender.run(steps[name]))
        update(1)
    for contender in running.values():
        contender.process.shutdown()
    return running, absent
