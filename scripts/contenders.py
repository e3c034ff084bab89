"""The programs that the benchmark compares, each in a process of its own, with only its own framework in memory."""

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import cli
from jaxcnn.config import DEFAULTS, Config
from jaxcnn.progress import Update

KERNELS = ("torch-product", "jax-product", "addition")  # they measure the machine's speed
SIDE = 2048  # of their matrices
IMAGES, CIFAR10 = 2048, 50_000  # at least so many that the contenders work on; those of a training

Cost = tuple[int, int] | None  # dispatches, and bytes sent to the device with them; None if there are no dispatches
Run = Callable[[int], Cost]  # does a number of steps


@dataclass(frozen=True)
class Case:
    """What the contenders are compared at.

    task: training; inference, of images on the device; or prediction, of one image at a time, from the NumPy array to
    that of its probabilities.  width: of the network, in multiples of the recipe's.  size: of a trained image.
    """

    task: str
    batch_size: int
    recipe: str = "tutorial"
    width: int = 1
    size: int = 32

    @property
    def config(self) -> Config:
        """Return the configuration of the whole training."""
        default = DEFAULTS[self.recipe]["cifar10"]
        return replace(default, batch_size=self.batch_size, widths=tuple(self.width * n for n in default.widths))

    @property
    def per_epoch(self) -> int:
        """Return the steps of an epoch of the whole training."""
        return -(-CIFAR10 // self.batch_size)


def fixed_data(batch_size: int) -> tuple[Any, Any]:
    """Return the images, uint8 [n, 32, 32, 3], and the labels that every contender works on, in whole batches."""
    rng, images = np.random.default_rng(0), -(-IMAGES // batch_size) * batch_size
    return rng.integers(0, 256, (images, 32, 32, 3), np.uint8), rng.integers(0, 10, images, np.uint8)


def jax_runner(case: Case) -> Run:
    """Return a run of this project, which does all steps in one dispatch."""
    import jax.numpy as jnp

    from jaxcnn import networks, platform, sharding, train
    from jaxcnn.augment import ONE_VIEW
    from jaxcnn.recipe import recipe_for
    from jaxcnn.weights import make_weights

    batch_size, arrays = case.batch_size, fixed_data(case.batch_size)
    mesh = sharding.make_mesh(platform.start_for(batch_size), None, batch_size)
    batches, seed = sharding.divided(mesh), sharding.replicate(np.uint32(0), mesh)
    data = train.Arrays(*sharding.replicate(arrays, mesh))
    recipe = recipe_for(case.config, batch_size=batch_size, per_epoch=case.per_epoch)
    recipe = replace(recipe, sizes=(case.size,)) if recipe.sizes else recipe  # that of all epochs
    state = sharding.replicate(train.create_state(recipe, 0, arrays[0]), mesh)
    train_steps = train.make_train_steps(recipe, batch_size, batches)
    # The network, but with one view of an image, as in PyTorch.
    network = type("OneView", (type(recipe.network),), {"views": ONE_VIEW})(*case.config.widths)
    images = cache(lambda count: data.images[jnp.arange(count) % len(data.images)])
    if case.task == "prediction":  # copies of the parameters, which would count as memory in the other tasks
        named = {name: np.asarray(array) for name, array in networks.named(state.variables).items()}
        predict = make_weights(network, named, {}).predict

    def run(steps: int) -> Cost:
        nonlocal state
        if case.task == "training":
            before = int(state.step)
            state = train_steps(state, data, seed, np.int32(steps))
            if int(state.step) != before + steps:  # which waits for it
                raise RuntimeError("the loss is not finite, which ends training")
            return 1, 4
        if case.task == "prediction":
            for image in islice(cycle(arrays[0]), steps):
                predict(image)
            return steps, steps * image.nbytes
        many = images(steps * batch_size)
        train.predict_logits(
            network, state.variables, many, batch_size=batch_size, sharding=batches
        ).block_until_ready()
        return 1, 0

    return run


def flax_runner(case: Case) -> Run:
    """Return a run of the tutorial's network in stock Flax layers, as a user would write it, stepped from Python."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax
    from flax.training.train_state import TrainState

    batch_size, (channels, hidden) = case.batch_size, case.config.widths

    class Stock(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Conv(channels, (3, 3))(x)))
            x = nn.max_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(hidden)(x.reshape(len(x), -1)))
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))

    model, (images, labels) = Stock(), map(jnp.asarray, fixed_data(batch_size))
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.001, 0.9))

    def scaled(x: Any) -> Any:
        return x.astype(jnp.float32) / 255

    def batch(position: Any) -> tuple[Any, Any]:
        start = position * batch_size % len(images)
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, batch_size) for a in (images, labels))
        return scaled(x), y.astype(jnp.int32)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, position: Any) -> Any:
        x, y = batch(position)

        def loss(params: Any) -> Any:
            key = {"dropout": jax.random.fold_in(jax.random.key(0), position)}
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x, True, rngs=key), y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    logits = jax.jit(lambda params, position: model.apply(params, batch(position)[0], False))
    predict = jax.jit(lambda params, image: jax.nn.softmax(model.apply(params, scaled(image[None]), False)))
    singles = np.asarray(images)

    def run(steps: int) -> Cost:
        nonlocal state
        for position in map(np.int32, range(steps)):
            if case.task == "training":
                state = step(state, position)
            elif case.task == "prediction":
                np.asarray(predict(state.params, singles[position % len(singles)]))
            else:
                logits(state.params, position).block_until_ready()
        jax.block_until_ready(state)
        return steps, 4 * steps

    return run


def torch_runner(case: Case, kind: str) -> Run:
    """Return a run of the recipe's loop in PyTorch."""
    import torch
    import torch_training

    from parity.twins.speedrun import Speedrun
    from parity.twins.tutorial import CNN

    torch.manual_seed(0)
    images, labels = fixed_data(case.batch_size)
    order = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=order)
    y = torch.tensor(labels).long()
    network = CNN(*case.config.widths) if case.recipe == "tutorial" else Speedrun(*case.config.widths)
    network.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs want a dtype with it
    network.train(case.task == "training")
    forward = torch.compile(network) if kind == "torch-compile" else network
    taken: Iterator[Any]
    if case.task == "training":
        steps = torch_training.tutorial if case.recipe == "tutorial" else torch_training.speedrun
        taken = steps(network, forward, x, y, case)
    elif case.task == "prediction":
        taken = (predict_in_torch(forward, image, order) for image in cycle(images))
    else:
        taken = map(forward, cycle(x.split(case.batch_size)))

    @torch.inference_mode(case.task != "training")
    def run(steps: int) -> None:
        for _ in islice(taken, steps):
            pass

    return run


def predict_in_torch(forward: Any, image: np.ndarray, order: Any) -> np.ndarray:
    """Return the probabilities of an image's classes."""
    import torch

    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255).contiguous(memory_format=order)
    return forward(x).softmax(1).numpy()


def kernel_runner(case: Case, kind: str) -> Run:
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


run: Run  # of the contender that this process is


def begin(contender: str, case: Case) -> float:
    """Set up a contender in this process, warm it up, and return the seconds of its first step."""
    global run
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a first step compiles
    runners = {"jaxcnn": jax_runner, "flax": flax_runner}
    runners |= {name: partial(kernel_runner, kind=name) for name in KERNELS}
    if contender.startswith("torch"):
        import torch

        torch.set_flush_denormal(True)  # as XLA does: training on noise ends in subnormal numbers, five times as slow
    run = runners.get(contender, partial(torch_runner, kind=contender))(case)
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
