"""The programs that the benchmark compares, each in a process of its own, whose memory holds no other's framework."""

import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import cycle, islice
from multiprocessing import get_context
from typing import Any

import numpy as np

IMAGES = 2048

Cost = tuple[int, int] | None  # dispatches, and bytes sent to the device with them; None if there are no dispatches
Run = Callable[[int], Cost]  # does a number of steps


def fixed_data() -> tuple[Any, Any]:
    """Return the images, uint8 [IMAGES, 32, 32, 3], and the labels that every contender works on."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES, np.uint8)


def jax_runner(task: str, batch_size: int, width: int) -> Run:
    """Return a run of this project, which does all steps in one dispatch."""
    import jax.numpy as jnp

    from jaxcnn import CNN, platform, recipe, train

    platform.start(None)
    data, seed = train.Arrays(*map(jnp.asarray, fixed_data())), jnp.uint32(0)
    tutorial = recipe.tutorial(CNN(32 * width, 512 * width), 0.001, 0.9)
    state, train_steps = train.create_state(tutorial, 0), train.make_train_steps(tutorial, batch_size)
    images = cache(lambda count: data.images[jnp.arange(count) % IMAGES])

    def run(steps: int) -> Cost:
        nonlocal state
        if task == "training":
            state = train_steps(state, data, seed, np.int32(steps))
            state.loss_sum.block_until_ready()
            return 1, 4
        batches = images(steps * batch_size)
        train.predict_logits(tutorial.network, state.variables, batches, batch_size=batch_size).block_until_ready()
        return 1, 0

    return run


def flax_runner(task: str, batch_size: int, width: int) -> Run:
    """Return a run of the network in stock Flax layers, as a user would write it, stepped from Python."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax
    from flax.training.train_state import TrainState

    class Stock(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Conv(32 * width, (3, 3))(x)))
            x = nn.max_pool(nn.relu(nn.Conv(32 * width, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(512 * width)(x.reshape(len(x), -1)))
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))

    model, (images, labels) = Stock(), map(jnp.asarray, fixed_data())
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.001, 0.9))

    def batch(position: Any) -> tuple[Any, Any]:
        start = position * batch_size % IMAGES
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, batch_size) for a in (images, labels))
        return x.astype(jnp.float32) / 255, y.astype(jnp.int32)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, position: Any) -> Any:
        x, y = batch(position)

        def loss(params: Any) -> Any:
            key = {"dropout": jax.random.fold_in(jax.random.key(0), position)}
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x, True, rngs=key), y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    logits = jax.jit(lambda params, position: model.apply(params, batch(position)[0], False))

    def run(steps: int) -> Cost:
        nonlocal state
        for position in map(np.int32, range(steps)):
            if task == "training":
                state = step(state, position)
            else:
                logits(state.params, position).block_until_ready()
        jax.block_until_ready(state)
        return steps, 4 * steps

    return run


def torch_runner(task: str, batch_size: int, width: int, kind: str) -> Run:
    """Return a run of the tutorial's loop in PyTorch."""
    import torch
    from torch import nn

    from parity.twins.tutorial import CNN

    torch.manual_seed(0)
    images, labels = fixed_data()
    order = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=order)
    y = torch.tensor(labels).long()
    network = CNN(32 * width, 512 * width)
    network.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs want a dtype with it
    network.train(task == "training")
    forward = torch.compile(network) if kind == "torch-compile" else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))

    @torch.inference_mode(task == "inference")
    def run(steps: int) -> None:
        for batch, targets in islice(cycle(batches), steps):
            logits = forward(batch)
            if task == "training":
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()

    return run


def matmul_runner(*_: Any) -> Run:
    """Return a run of products of 2048 x 2048 float32 matrices by PyTorch's library."""
    import torch

    a, b = torch.rand(2, 2048, 2048)

    def run(steps: int) -> None:
        for _ in range(steps):
            torch.mm(a, b)

    return run


run: Run  # of the contender that this process is


def begin(contender: str, task: str, batch_size: int, width: int) -> float:
    """Set up a contender in this process, warm it up, and return the seconds of its first step."""
    global run
    runners = {"jaxcnn": jax_runner, "flax": flax_runner, "matmul": matmul_runner}
    run = runners.get(contender, partial(torch_runner, kind=contender))(task, batch_size, width)
    ms, _ = work(1)
    run(2)
    return ms / 1000


def work(steps: int) -> tuple[float, dict[str, Any]]:
    """Do `steps` steps. Return the milliseconds of one, the process's peak memory and the dispatches."""
    start = time.perf_counter()
    cost = run(steps)
    ms = 1000 * (time.perf_counter() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return ms, {"peak_mb": peak, "steps": steps, "dispatches_and_bytes_sent": cost}


class Contender:
    """A process that does a contender's steps when asked."""

    def __init__(self, name: str, task: str, batch_size: int, width: int) -> None:
        ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)  # without it, each process would print a traceback
        self.process = ProcessPoolExecutor(1, get_context("spawn"), signal.signal, ignore_ctrl_c)
        self.facts = {"first_step_s": self.process.submit(begin, name, task, batch_size, width).result()}
        self.ms: list[float] = []

    def run(self, steps: int) -> float:
        """Do `steps` steps, and return the milliseconds of one."""
        ms, facts = self.process.submit(work, steps).result()
        self.facts.update(facts)
        return ms
