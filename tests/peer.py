"""One of many processes: a narrow network, a dispatch and a checkpoint for each step, and seconds to wait for others.

    python -m tests.peer train FAULTS TRAIN.PY'S ARGUMENTS ...
    python -m tests.peer trajectory DEVICES FILE.npz COORDINATOR PROCESSES PROCESS     # and an epoch of `fit`

FAULTS, joined by commas: `slow` waits a little at each step; `other` has other data; `hasty` waits one
second for the others to come; `none`.
"""

import dataclasses
import runpy
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcnn import data, fit, platform, processes, sharding, train
from jaxcnn.config import DEFAULTS, Config
from jaxcnn.data import Dataset
from jaxcnn.networks.tutorial import CNN
from jaxcnn.recipe import tutorial
from jaxcnn.run_directory import RunDirectory
from tests.conftest import ROOT, small_dataset

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def narrow(**changes: Any) -> Config:
    return dataclasses.replace(DEFAULTS["tutorial"]["digits"], widths=(2, 4), **changes)


def trajectory(dataset: Dataset, mesh: Mesh, dtype: Any, dispatches: list[int]) -> np.ndarray:
    """The epoch's loss and all parameters, after each dispatch of so many steps."""
    recipe = tutorial(CNN(2, 4, dtype=dtype, param_dtype=dtype), 0.05, 0.9)
    # Not drawn by JAX: a float32 draw's last bit depends on how it is compiled.
    like, rng = jax.eval_shape(lambda: train.create_state(recipe, 0)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(dtype), like.params)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)._replace(params=params)
    state, arrays = sharding.replicate((state, train.Arrays(dataset.train.images, dataset.train.labels)), mesh)
    steps = train.make_train_steps(recipe, 32, sharding.divided(mesh))
    steps = steps.lower(state, arrays, np.uint32(0), np.int32(1)).compile(QUICKLY)
    points = []
    for count in dispatches:
        state = steps(state, arrays, np.uint32(0), np.int32(count))
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        points.append(np.concatenate([np.ravel(leaf) for leaf in [state.loss_sum, *jax.tree.leaves(state.params)]]))
    return np.stack(points)


def trajectories(mesh: Mesh) -> dict[str, np.ndarray]:
    """Two epochs and a step in float64, step by step, their last batches not full; an epoch of digits in float32."""
    with jax.enable_x64(True):
        found = {"float64": trajectory(small_dataset(), mesh, np.float64, [1] * 7)}
    return found | {"float32": trajectory(data.load("digits"), mesh, np.float32, [46])}


def run_trajectory(devices: str, path: str, *cluster: str) -> None:
    with processes.joined(cluster[0], int(cluster[1]), int(cluster[2])):
        processes.settle(platform.start("cpu", int(devices)))
        mesh = sharding.make_mesh(jax.devices(), int(devices), 32)
        found = trajectories(mesh)
        config, run = narrow(epochs=1), RunDirectory(Path("run"))
        if sharding.is_first():
            np.savez(path, **found)
            run.create(config)
        fit.fit(config, small_dataset(), run.path, mesh, say=lambda _: None)


def run_train(faults: str, *arguments: str) -> None:
    DEFAULTS["tutorial"]["digits"] = narrow()
    processes.START_SECONDS = 1 if "hasty" in faults else 30
    processes.SILENCE_SECONDS = 4
    fit.TICK_SECONDS = 0.0
    fit.fit = partial(fit.fit, checkpoint_seconds=0.0)
    data.load = lambda *_: small_dataset()
    if "other" in faults:
        data.load = lambda *_: dataclasses.replace(small_dataset(), train=small_dataset().test)
    if "slow" in faults:
        steps = fit.Trainer.steps
        fit.Trainer.steps = lambda *a: (time.sleep(0.05), steps(*a))[1]
    sys.argv = ["train.py", "--platform", "cpu", "--dataset", "digits", *arguments]
    runpy.run_path(str(ROOT / "scripts/train.py"), run_name="__main__")


if __name__ == "__main__":
    {"train": run_train, "trajectory": run_trajectory}[sys.argv[1]](*sys.argv[2:])
