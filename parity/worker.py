"""One part of the proof, in a process of its own: `python -m parity.worker PART OUT [WEIGHTS] [--data-dir D]`.

Whether JAX has float64 is settled when it starts, so that float64 cannot share a process with float32; the controls
run beside both. OUT becomes a JSON file of what was found.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import torch

import parity
from jaxcnn import cli, data, files, platform
from jaxcnn.model import CNN
from jaxcnn.weights import check_classes
from parity import chain, faults
from parity.cases import random_params
from parity.subject import Size, Subject
from parity.trajectory import Drift, initial


def main() -> None:
    """Run a part and write what it found."""
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["float64", "float32", "faults"])
    parser.add_argument("out", type=Path)
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--steps", type=int, default=200)
    cli.add_data_dir(parser)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", arguments.part != "float32")
    devices = platform.start(None)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    found: dict[str, Any] = {"device": platform.describe(devices, "float32")}
    if arguments.part == "faults":
        subject = faults.narrow(data.load("digits"))
        found["checks"] = [dataclasses.asdict(check) for check in initial(subject)]
        found["faults"] = faults.run(subject)
    else:
        drift: Drift = []
        subject = subject_of(arguments.part, arguments.weights, arguments.data_dir, arguments.steps)
        found["checks"] = [dataclasses.asdict(check) for check in chain.checks(subject, drift)]
        found["drift"] = drift
    files.write_text(arguments.out, json.dumps(found))


def subject_of(precision: str, path: str | None, data_dir: str | None, steps: int) -> Subject:
    """The given weights, or random ones, with CIFAR-10 where a folder is given and the digits otherwise."""
    dataset = data.load("cifar10", data_dir) if data_dir else data.load("digits")
    if path is None:
        params = random_params(CNN())
    else:
        params = parity.load_weights(path).params
        check_classes(params, dataset.class_names, path)
    return Subject(precision, params, dataset, Size(steps=steps))


if __name__ == "__main__":
    cli.run(main)
