"""The parts of our own proof, each in a process of its own, since one Python process keeps only one core busy."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import torch

from jaxcnn import cli, data, platform
from jaxcnn.files import NamedArrays
from jaxcnn.networks import Network, describe
from parity.twins import controls, speedrun_controls, training
from parity.twins.pairs import pair_of

MISTAKES: dict[str, Any] = {"tutorial": controls, "speedrun": speedrun_controls}  # by network
PARTS = ("float64", "float32", "controls")


def run_parts(*given: Any) -> dict[str, Any]:
    """Run all parts side by side; give their checks, the controls and the device."""
    with ProcessPoolExecutor(len(PARTS), multiprocessing.get_context("spawn"), cli.begin_worker) as pool:
        running = [pool.submit(part, name, *given) for name in PARTS]
        try:
            results = [future.result() for future in running]
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return {**results[-1], "checks": [check for result in results for check in result["checks"]]}


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
            return {"device": device, "checks": list(initial), "faults": faults}
        trial = training.trial_of(network, weights, data.load(*source), steps)
        return {"device": device, "checks": list(training.checks(pair_of(network, name), trial))}
