"""The parts of the proof, each in a process of its own, since JAX settles whether it has float64 when it starts."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from jaxcnn import cli, data, platform
from jaxcnn.errors import UserError
from jaxcnn.model import CNN, Params

PARTS = ("float64", "float32", "faults")


def run_parts(*given: Any) -> dict[str, Any]:
    """The findings of all parts, side by side."""
    spawn, ignored = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for us alone
    with ProcessPoolExecutor(len(PARTS), spawn, initializer=signal.signal, initargs=ignored) as pool:
        running = [pool.submit(part, name, *given) for name in PARTS]
        try:
            found = [one.result() for one in running]
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise
    if problem := found[0].get("problem"):
        cli.fail(problem)
    checks = [check for one in found for check in one["checks"]]
    drift = {name: one["drift"] for name, one in zip(PARTS, found, strict=True) if name != "faults"}
    return {"checks": checks, "faults": found[-1]["faults"], "drift": drift, "device": found[0]["device"]}


def part(name: str, params: Params | None, source: tuple[str, str | None], steps: int) -> dict[str, Any]:
    """A precision, with these weights or random ones; or the controls, with random ones and the digits."""
    import torch  # here, so that the command can say where it is missing

    from parity import cases, chain, faults, training

    jax.config.update("jax_enable_x64", name != "float32")
    try:
        found: dict[str, Any] = {"device": platform.describe(platform.start(None), "float32"), "drift": []}
    except UserError as problem:  # as text: it cannot be pickled
        return {"problem": str(problem)}
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    if name == "faults":
        trial = faults.narrow(data.load("digits"))
        return {**found, "checks": list(training.initial(trial)), "faults": faults.run(trial)}
    params = cases.random_params(CNN()) if params is None else params
    trial = cases.Trial(name, params, data.load(*source), steps=steps)
    return {**found, "checks": list(chain.checks(trial, found["drift"]))}
