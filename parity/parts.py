"""The parts of our own proof, each in a process of its own, since one Python process keeps only one core busy."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

import jax
import torch

from jaxcnn import cli, data, platform
from jaxcnn.files import NamedArrays
from jaxcnn.networks import Network, describe
from jaxcnn.progress import progress
from parity.bounds import Check
from parity.twins import controls, speedrun_controls, training
from parity.twins.pairs import pair_of

MISTAKES: dict[str, Any] = {"tutorial": controls, "speedrun": speedrun_controls}  # by network
PARTS = ("float64", "float32", "controls")
SECONDS = 0.5  # between two looks at the progress

made: Any  # the number of comparisons that all parts have made


def run_parts(*given: Any) -> dict[str, Any]:
    """Run all parts side by side; give their checks, the controls and the device."""
    context = multiprocessing.get_context("spawn")
    count, shown = context.Value("i", 0), 0
    with (
        ProcessPoolExecutor(len(PARTS), context, begin, (count,)) as pool,
        progress("comparing", 0, "comparisons") as update,
    ):
        running = [pool.submit(part, name, *given) for name in PARTS]
        try:
            while (ended := wait(running, SECONDS, FIRST_EXCEPTION)).not_done and all(
                future.exception() is None for future in ended.done
            ):
                update(count.value - shown)
                shown = count.value
            results = [future.result() for future in running]
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return {**results[-1], "checks": [check for result in results for check in result["checks"]]}


def begin(count: Any) -> None:
    """Set up the process of a part, which counts its comparisons."""
    global made
    made = count
    cli.begin_worker()


def counted(checks: Iterable[Check]) -> Iterator[Check]:
    """Count comparisons as they are made."""
    for check in checks:
        with made.get_lock():
            made.value += 1
        yield check


def part(
    name: str, network: Network, weights: NamedArrays, source: tuple[str, str | None], steps: int | None
) -> dict[str, Any]:
    """Compare a network with its twin in one precision; or try the controls, on the digits."""
    device = platform.describe(platform.start(None), "float32")
    torch.set_num_threads(1 if name == "float32" else max(1, (os.cpu_count() or 2) // 2))  # see checking.one_thread
    with jax.enable_x64(name != "float32"):
        if name == "controls":
            of = MISTAKES[describe(network)["name"]]
            initial = training.initial(pair_of(of.NETWORK, controls.PRECISION))
            faults = controls.run(of.small_trial(data.load("digits")), of.NETWORK, of.CONTROLS)
            return {"device": device, "checks": list(counted(initial)), "faults": faults}
        trial = training.trial_of(network, weights, data.load(*source), steps)
        return {"device": device, "checks": list(counted(training.checks(pair_of(network, name), trial)))}
