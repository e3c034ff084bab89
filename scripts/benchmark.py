"""This against PyTorch, measured in one run: every contender a process of its own, all of them in turn."""

import importlib.util
import json
import os
import platform as machine
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn import cli
from jaxcnn.errors import UserError
from jaxcnn.progress import Update, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python scripts/benchmark.py                                  about 8 minutes; keep the machine otherwise idle
  python scripts/benchmark.py --batch-sizes 32 --json bench.json    writes bench.png too
  python scripts/benchmark.py --scaling --json bench.json           and bench.scaling.png

Each contender is a process of its own with all cores: the same weights and images, warmed up, then timed in turn
(A B C A B C ...). A ratio is PyTorch's best median over this project's: above 1, this project is faster."""

CONTENDERS = {  # what they are, and their colours
    "jaxcnn": ("this project", "#4477aa"),
    "flax": ("stock Flax layers, one jitted donated step at a time", "#88ccee"),
    "torch": ("PyTorch eager", "#ddaa99"),
    "torch-channels-last": ("PyTorch eager, channels last", "#cc6677"),
    "torch-compile": ("torch.compile", "#882255"),
}
TASKS = ("training", "inference")
IMAGES = 2048
SCALING = {"batch size": (1, 4, 16, 64, 256, 1024, 2048), "width": (1, 2, 3, 4)}

Cost = tuple[int, int] | None  # dispatches, and bytes sent to the device with them; None: not a matter of dispatches
Run = Callable[[int], Cost]  # does so many steps


def flops(task: str, width: int) -> int:
    """Multiplications and additions of the matrix products an image: two a weight and position.

    Training does each three times (forward, both gradients), but for conv1, whose input needs none.
    """
    channels, hidden = 32 * width, 512 * width
    conv1, rest = 2 * 1024 * 27 * channels, 2 * (1024 * 9 * channels**2 + 256 * channels * hidden + 10 * hidden)
    return {"training": 2 * conv1 + 3 * rest, "inference": conv1 + rest}[task]


def fixed_data() -> tuple[Any, Any]:
    """The images uint8 [IMAGES, 32, 32, 3] and labels that every contender works on."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES, np.uint8)


def jax_runner(task: str, batch_size: int, width: int) -> Run:
    """This project's own dispatch of many steps."""
    import jax.numpy as jnp

    from jaxcnn import CNN, platform, train

    platform.start(None)
    data = train.Arrays(*map(jnp.asarray, fixed_data()))
    model, optimizer, seed = CNN(32 * width, 512 * width), train.sgd(0.001, 0.9), jnp.uint32(0)
    state = train.create_state(model, optimizer, 0)
    images = cache(lambda count: data.images[jnp.arange(count) % IMAGES])

    def run(steps: int) -> Cost:
        nonlocal state
        if task == "inference":
            many = images(steps * batch_size)
            train.predict_logits(model, state.params, many, batch_size=batch_size).block_until_ready()
            return 1, 0
        count = np.int32(steps)
        state = train.train_steps(model, optimizer, state, data, seed, count, batch_size=batch_size)
        state.loss_sum.block_until_ready()
        return 1, count.nbytes

    return run


def flax_runner(task: str, batch_size: int, width: int) -> Run:
    """The network in stock Flax layers, as a user would write it, stepped from Python."""
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
    """The tutorial's loop in PyTorch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    images, labels = fixed_data()
    order = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=order)
    y = torch.tensor(labels).long()
    channels, hidden = 32 * width, 512 * width
    network = nn.Sequential(  # as parity.torch_model's, without the memory of importing JAX
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256 * channels, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 10),
    )  # fmt: skip
    network.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs know it together with a dtype only
    network.train(task == "training")
    forward = torch.compile(network) if kind == "torch-compile" else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))

    @torch.inference_mode(task == "inference")
    def run(steps: int) -> None:
        for position in range(steps):
            batch, wanted = batches[position % len(batches)]
            logits = forward(batch)
            if task == "training":
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, wanted).backward()
                optimizer.step()

    return run


def matmul_runner(*_: Any) -> Run:
    """2048 x 2048 products of float32, by PyTorch's library."""
    import torch

    a, b = torch.rand(2, 2048, 2048)

    def run(steps: int) -> None:
        for _ in range(steps):
            torch.mm(a, b)

    return run


run: Run  # of a contender's process


def begin(contender: str, task: str, batch_size: int, width: int) -> float:
    """In a process of its own: become a contender and warm up; the seconds of the first step."""
    global run
    runners = {"jaxcnn": jax_runner, "flax": flax_runner, "matmul": matmul_runner}
    run = runners.get(contender, partial(torch_runner, kind=contender))(task, batch_size, width)
    start = time.perf_counter()
    run(1)
    seconds = time.perf_counter() - start
    run(2)
    return seconds


def work(steps: int) -> tuple[float, dict[str, Any]]:
    """Do so many steps; the seconds that they took, and what else there is to say of them."""
    start = time.perf_counter()
    cost = run(steps)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, {"peak_mb": peak, "steps": steps, "dispatches_and_bytes_sent": cost}


class Contender:
    """A process that waits to be told how many steps to do."""

    def __init__(self, name: str, task: str, batch_size: int, width: int) -> None:
        ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)  # or each process ends in a traceback of its own
        self.process = ProcessPoolExecutor(1, get_context("spawn"), signal.signal, ignore_ctrl_c)
        self.facts = {"first_step_s": self.process.submit(begin, name, task, batch_size, width).result()}
        self.ms: list[float] = []

    def run(self, steps: int) -> float:
        """Do so many steps; the milliseconds that one took."""
        seconds, facts = self.process.submit(work, steps).result()
        self.facts.update(facts)
        return 1000 * seconds / steps


def measure(
    task: str, batch_size: int, rounds: int, update: Update, width: int = 1, names: Iterable[str] = CONTENDERS
) -> dict[str, Any]:
    """Milliseconds a step of each contender, in turn; with PyTorch's best over ours, and the share of matmul speed."""
    contenders, absent = {}, {}
    for name in [*names, "matmul"]:
        try:
            contenders[name] = Contender(name, task, batch_size, width)
        except Exception as problem:  # torch.compile wants a C++ compiler
            absent[name] = str(problem).partition("\n")[0]
    steps = {name: max(1, round(1000 / contender.run(1))) for name, contender in contenders.items()}
    for name, contender in contenders.items():
        contender.run(steps[name])  # compiles, where the number of images is part of the program
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.ms.append(contender.run(steps[name]))
        update(1)
    for contender in contenders.values():
        contender.process.shutdown()
    gflops = 2 * 2048**3 / statistics.median(contenders.pop("matmul").ms) / 1e6
    rows: dict[str, Any] = {}
    for name, contender in contenders.items():
        median = statistics.median(contender.ms)
        share = flops(task, width) * batch_size / median / 1e6 / gflops
        ms = {"median": median, "min": min(contender.ms), "max": max(contender.ms)}
        rows[name] = {"ms": ms, "share_of_matmul": share, **contender.facts}
    torches = [row["ms"]["median"] for name, row in rows.items() if name.startswith("torch")]
    ratio = min(torches) / rows["jaxcnn"]["ms"]["median"] if torches else None
    known = {"task": task, "batch_size": batch_size, "matmul_gflops": gflops, "ratio": ratio}
    return {**known, "rows": rows, "absent": absent}


def command_to_first_step() -> dict[str, float]:
    """Seconds from the command to the end of the first step on the digits, without and with Python's bytecode.

    pip compiles bytecode as it installs, so the second is what a user waits for.
    """
    code = (
        "from jaxcnn import data, fit, platform, sharding, train; from jaxcnn.config import DEFAULTS;"
        "c = DEFAULTS['digits'];"
        "t = fit.make_trainer(c, data.load('digits'), sharding.make_mesh(platform.start(None), 1, c.batch_size));"
        "t.steps(train.create_state(t.model, t.optimizer, 0), 1)"
    )
    cold = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": os.devnull}
    seconds = {}
    for name, settings in {"cold": cold, "warm": {}}.items():
        start = time.perf_counter()
        environment = os.environ | settings
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - start
    return seconds


def table(results: list[dict[str, Any]]) -> str:
    """The results as aligned text."""
    head = f"  {'':20} {'ms: median':>10} {'min':>8} {'max':>8} {'of matmul':>10} {'first step':>11} {'peak':>9}"
    lines = []
    for result in results:
        ratio = f"  best PyTorch / jaxcnn = {result['ratio']:.2f}" if result["ratio"] else ""
        speed = f"matrix products at {result['matmul_gflops']:.0f} GFLOP/s"
        lines += [f"\n{result['task']}, batch {result['batch_size']}: {speed}{ratio}", head]
        for name, row in result["rows"].items():
            line = f"  {name:20} {row['ms']['median']:10.1f} {row['ms']['min']:8.1f} {row['ms']['max']:8.1f} "
            line += f"{row['share_of_matmul']:10.0%} {row['first_step_s']:9.1f} s {row['peak_mb']:6.0f} MB"
            if row["dispatches_and_bytes_sent"]:
                times, sent = row["dispatches_and_bytes_sent"]
                line += f"  {row['steps']} steps in {times} dispatch{'es' * (times > 1)}, {sent} bytes sent"
            lines.append(line)
        lines += [f"  {name:20} not measured: {why}" for name, why in result["absent"].items()]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> "Figure":
    """Images a second of each contender, a panel a task, a group of bars a batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        chosen = [result for result in results if result["task"] == task]
        for place, (name, (label, colour)) in enumerate(CONTENDERS.items(), start=-2):
            found = [(group, r) for group, r in enumerate(chosen) if name in r["rows"]]
            heights = [1000 * r["batch_size"] / r["rows"][name]["ms"]["median"] for _, r in found]
            axes.bar([group + 0.16 * place for group, _ in found], heights, 0.15, color=colour, label=label)
        axes.set_xticks(range(len(chosen)), [f"batch {r['batch_size']}" for r in chosen])
        axes.set(title=task, ylabel="images a second")
        axes.spines[["top", "right"]].set_visible(False)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def scaling(rounds: int, update: Update) -> dict[str, list[dict[str, Any]]]:
    """Training as it grows: by batch size, and at batch 32 by width, in multiples of the tutorial's."""
    one = partial(measure, "training", rounds=rounds, update=update, names=("jaxcnn", "torch-channels-last"))
    sizes, widths = SCALING.values()
    return {"batch size": [one(size) for size in sizes], "width": [one(32, width=width) for width in widths]}


def draw_scaling(results: dict[str, list[dict[str, Any]]]) -> "Figure":
    """Milliseconds a step against batch size and width, PyTorch's line beside ours, all axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (what, found) in zip(figure.subplots(1, 2), results.items(), strict=True):
        for name in found[0]["rows"]:
            low, middle, high = ([r["rows"][name]["ms"][k] for r in found] for k in ("min", "median", "max"))
            label, colour = CONTENDERS[name]
            axes.plot(SCALING[what], middle, "o-", color=colour, label=label)
            axes.fill_between(SCALING[what], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.loglog()
        axes.set_xticks(SCALING[what], [str(n) for n in SCALING[what]], fontsize=8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set(xlabel=f"{what}, batch 32" if what == "width" else what, ylabel="ms a training step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def parser() -> cli.ArgumentParser:
    """The command line."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures as JSON, and pictures beside it")
    add("--batch-sizes", type=int, choices=[2**k for k in range(12)], nargs="+", default=[32, 128, 512], metavar="N",
        help="powers of two up to 2048 (default 32 128 512)")  # fmt: skip
    add("--rounds", type=cli.positive_int, default=7, metavar="N", help="how often each is timed (default 7)")
    add("--scaling", action="store_true", help="also by batch size 1 to 2048 and width x1 to x4; 5 minutes more")
    return parser


def main() -> None:
    """Measure everything, print the table, write JSON and figures."""
    arguments = parser().parse_args()
    from jaxcnn import figures, files  # here, so that PyTorch's processes have no JAX in their memory

    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed", "scripts/benchmark.py", "pip install 'jaxcnn[parity]'")
    files.check_folder(arguments.json)
    rounds, sizes = arguments.rounds, arguments.batch_sizes
    points = len(TASKS) * len(sizes) + arguments.scaling * sum(map(len, SCALING.values()))
    with progress("benchmark", rounds * points, "rounds") as update:
        results = [measure(task, size, rounds, update) for task in TASKS for size in sizes]
        grown = scaling(rounds, update) if arguments.scaling else {}
    seconds = command_to_first_step()
    versions = {name: version(name) for name in ("jax", "flax", "torch")}
    python = f"{os.cpu_count()} cores, {machine.machine()}, Python {machine.python_version()}"
    print(", ".join([python, *(f"{name} {number}" for name, number in versions.items())]))
    print(table(sum(grown.values(), results)))
    print(f"\nfrom the command to the first step: {seconds['cold']:.1f} s cold, {seconds['warm']:.1f} s warm")
    if arguments.json:
        found = {"results": results, "scaling": grown, "command_to_first_step_s": seconds, "versions": versions}
        files.write_text(arguments.json, json.dumps(found, indent=2) + "\n")
        figures.save(draw(results), arguments.json.with_suffix(".png"))
        if grown:
            figures.save(draw_scaling(grown), arguments.json.with_suffix(".scaling.png"))


if __name__ == "__main__":
    cli.run(main)
