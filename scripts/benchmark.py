"""This against PyTorch, measured in one run: every contender a process of its own, all of them in turn."""

import json
import os
import platform as machine
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcnn import cli, figures, files, platform
from jaxcnn.progress import Update, progress

EXAMPLES = """examples:
  python scripts/benchmark.py                                  about 10 minutes; keep the machine otherwise idle
  python scripts/benchmark.py --batch-sizes 32 --json bench.json    writes bench.png too

Each contender is a process of its own with all cores: the same weights and images, warmed up, then timed in turn
(A B C A B C ...). A ratio is PyTorch's best median over this project's: above 1, this project is faster."""

CONTENDERS = {
    "jaxcnn": "this project",
    "flax": "stock Flax layers, one jitted donated step at a time",
    "torch": "PyTorch eager",
    "torch-channels-last": "PyTorch eager, channels last",
    "torch-compile": "torch.compile",
}
TASKS = ("training", "inference")
IMAGES = 2048
# Multiplications and additions of the matrix products an image: two a weight and position. Training does each three
# times (forward, both gradients), but for conv1, whose input needs none.
CONV1, CONV2, FC = 2 * 1024 * 27 * 32, 2 * 1024 * 288 * 32, 2 * (8192 * 512 + 512 * 10)
FLOPS = {"training": 2 * CONV1 + 3 * (CONV2 + FC), "inference": CONV1 + CONV2 + FC}

Run = Callable[[int], None]


def fixed_data() -> tuple[Any, Any]:
    """The images uint8 [IMAGES, 32, 32, 3] and labels that every contender works on."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES, np.uint8)


def jax_runner(task: str, batch_size: int) -> Run:
    """This project's own dispatch of many steps."""
    import jax
    import jax.numpy as jnp

    from jaxcnn import train
    from jaxcnn.config import Config

    data = train.Arrays(*map(jnp.asarray, fixed_data()))
    model, optimizer, seed = train.network(Config()), train.sgd(0.001, 0.9), jnp.uint32(0)
    state = [train.create_state(model, optimizer, 0)]

    def training(steps: int) -> None:
        jax.block_until_ready(state[0])
        state[0] = train.train_steps(model, optimizer, state[0], data, seed, jnp.int32(steps), batch_size=batch_size)
        state[0].loss_sum.block_until_ready()

    def inference(steps: int) -> None:
        images = data.images[jnp.arange(steps * batch_size) % IMAGES]
        train.predict_logits(model, state[0].params, images, batch_size=batch_size).block_until_ready()

    return {"training": training, "inference": inference}[task]


def flax_runner(task: str, batch_size: int) -> Run:
    """Stock layers in the same network, stepped from Python."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jaxcnn import layers, train
    from jaxcnn.config import Config
    from jaxcnn.model import scale_pixels

    def stock_dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

    patches = {
        "conv_general_dilated": lax.conv_general_dilated,
        "max_pool": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
        "dropout": stock_dropout,
    }
    for name, function in patches.items():
        setattr(layers, name, function)
    data = train.Arrays(*map(jnp.asarray, fixed_data()))
    model, optimizer, seed = train.network(Config()), train.sgd(0.001, 0.9), jnp.uint32(0)
    state, order = [train.create_state(model, optimizer, 0)], jnp.arange(IMAGES)

    @jax.jit
    def batch(position: jax.Array) -> train.Batch:
        return train.take_batch(data, order, position % (IMAGES // batch_size), batch_size)

    step = jax.jit(train.train_step, static_argnums=(0, 1), donate_argnums=2)
    logits = jax.jit(lambda params, b: model.apply({"params": params}, scale_pixels(b.images)))

    def training(steps: int) -> None:
        for position in range(steps):
            state[0] = step(model, optimizer, state[0], batch(jnp.uint32(position)), seed)
        state[0].loss_sum.block_until_ready()

    def inference(steps: int) -> None:
        for position in range(steps):
            logits(state[0].params, batch(jnp.uint32(position))).block_until_ready()

    return {"training": training, "inference": inference}[task]


def torch_runner(task: str, batch_size: int, kind: str) -> Run:
    """The tutorial's loop in PyTorch."""
    import torch

    from parity.torch_model import CNN

    torch.manual_seed(0)
    images, labels = fixed_data()
    order = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=order)
    y = torch.tensor(labels).long()
    network = CNN()
    network.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs know it together with a dtype only
    forward = torch.compile(network) if kind == "torch-compile" else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))

    def training(steps: int) -> None:
        for position in range(steps):
            batch, wanted = batches[position % len(batches)]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(forward(batch), wanted).backward()
            optimizer.step()

    @torch.inference_mode()
    def inference(steps: int) -> None:
        for position in range(steps):
            forward(batches[position % len(batches)][0])

    network.train(task == "training")
    return {"training": training, "inference": inference}[task]


def matmul_runner() -> Run:
    """2048 x 2048 products of float32, by PyTorch's library."""
    import torch

    a, b = torch.rand(2, 2048, 2048)

    def run(steps: int) -> None:
        for _ in range(steps):
            torch.mm(a, b)

    return run


def work(contender: str, task: str, batch_size: int) -> None:
    """Be a contender: warm up, then for each number on standard input do so many steps; print seconds and MB."""
    start = time.perf_counter()
    platform.start(None)  # before JAX starts: it sets XLA's flags
    if contender == "matmul":
        run = matmul_runner()
    elif contender in ("jaxcnn", "flax"):
        run = {"jaxcnn": jax_runner, "flax": flax_runner}[contender](task, batch_size)
    else:
        run = torch_runner(task, batch_size, contender)
    ready = time.perf_counter()
    run(1)
    print(json.dumps({"first_step": time.perf_counter() - ready, "setup": ready - start}), flush=True)
    run(2)
    for line in sys.stdin:
        begin = time.perf_counter()
        run(int(line))
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


class Contender:
    """A process that waits to be told how many steps to do."""

    def __init__(self, name: str, task: str, batch_size: int) -> None:
        command = [sys.executable, __file__, "--be", name, task, str(batch_size)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.start = self._answer()
        self.seconds: list[float] = []
        self.peak_mb = 0.0

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise RuntimeError(self.process.stderr.read().strip().splitlines()[-1])
        return json.loads(line)

    def run(self, steps: int) -> float:
        """Do so many steps; the seconds that one took."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer["seconds"] / steps

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def measure(task: str, batch_size: int, rounds: int, names: list[str], update: Update) -> dict[str, Any]:
    """Milliseconds a step of each contender, in turn; with PyTorch's best over ours, and the share of matmul speed."""
    contenders, absent = {}, {}
    for name in [*names, "matmul"]:
        try:
            contenders[name] = Contender(name, task, batch_size)
        except RuntimeError as problem:  # torch.compile wants a C++ compiler
            absent[name] = str(problem)
    steps = {name: max(1, round(1.0 / contender.run(1))) for name, contender in contenders.items()}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.seconds.append(contender.run(steps[name]))
        update(1)
    for contender in contenders.values():
        contender.stop()
    gflops = 2 * 2048**3 / statistics.median(contenders.pop("matmul").seconds) / 1e9
    rows: dict[str, Any] = {}
    for name, contender in contenders.items():
        milliseconds = sorted(1000 * s for s in contender.seconds)
        median = statistics.median(milliseconds)
        rows[name] = {
            "ms": {"median": median, "min": milliseconds[0], "max": milliseconds[-1]},
            "share_of_matmul": FLOPS[task] * batch_size / median / 1e6 / gflops,
            "first_step_s": contender.start["first_step"],
            "peak_mb": contender.peak_mb,
        }
    torches = [row["ms"]["median"] for name, row in rows.items() if name.startswith("torch")]
    ratio = min(torches) / rows["jaxcnn"]["ms"]["median"] if torches else None
    return {
        "task": task,
        "batch_size": batch_size,
        "matmul_gflops": gflops,
        "ratio": ratio,
        "rows": rows,
        "absent": absent,
    }


def command_to_first_step() -> dict[str, float]:
    """Seconds from the command to the end of the first step on the digits, without and with Python's bytecode."""
    code = (
        "from jaxcnn import data, fit, platform, sharding, train; from jaxcnn.config import DEFAULTS;"
        "c = DEFAULTS['digits'];"
        "t = fit.make_trainer(c, data.load('digits'), sharding.make_mesh(platform.start(None), 1, c.batch_size));"
        "t.steps(train.create_state(t.model, t.optimizer, 0), 1)"
    )
    seconds = {}
    for name, cache in {
        "cold": {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": os.devnull},
        "warm": {},
    }.items():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **cache}, stderr=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - start
    return seconds


def table(results: list[dict[str, Any]]) -> str:
    """The results as aligned text."""
    lines = []
    for result in results:
        ratio = f"  best PyTorch / jaxcnn = {result['ratio']:.2f}" if result["ratio"] else ""
        speed = f"matrix products at {result['matmul_gflops']:.0f} GFLOP/s"
        lines.append(f"\n{result['task']}, batch {result['batch_size']}: {speed}{ratio}")
        lines.append(
            f"  {'':20} {'ms: median':>10} {'min':>8} {'max':>8} {'of matmul':>10} {'first step':>11} {'peak':>9}"
        )
        for name, row in result["rows"].items():
            ms = row["ms"]
            lines.append(
                f"  {name:20} {ms['median']:10.1f} {ms['min']:8.1f} {ms['max']:8.1f} {row['share_of_matmul']:10.0%} "
                f"{row['first_step_s']:9.1f} s {row['peak_mb']:6.0f} MB"
            )
        lines += [f"  {name:20} not measured: {why}" for name, why in result["absent"].items()]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> Figure:
    """Images a second of each contender, a panel a task, a group of bars a batch size."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    colours = ("#4477aa", "#88ccee", "#cc6677", "#ddaa99", "#882255")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        chosen = [result for result in results if result["task"] == task]
        for place, (name, colour) in enumerate(zip(CONTENDERS, colours, strict=True)):
            found = [(group, r) for group, r in enumerate(chosen) if name in r["rows"]]
            heights = [1000 * r["batch_size"] / r["rows"][name]["ms"]["median"] for _, r in found]
            axes.bar([group + 0.16 * (place - 2) for group, _ in found], heights, 0.15, color=colour, label=name)
        axes.set_xticks(range(len(chosen)), [f"batch {r['batch_size']}" for r in chosen])
        axes.set_title(task)
        axes.set_ylabel("images a second")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Measure everything, print the table, write JSON and figure."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures as JSON, and a picture beside it")
    add(
        "--batch-sizes",
        type=cli.positive_int,
        nargs="+",
        default=[32, 128, 512],
        metavar="N",
        help="default 32 128 512",
    )
    add("--rounds", type=cli.positive_int, default=7, help="how often each contender is timed (default 7)")
    arguments = parser.parse_args()
    results = []
    with progress("benchmark", arguments.rounds * 2 * len(arguments.batch_sizes), "rounds") as update:
        for task in TASKS:
            for batch_size in arguments.batch_sizes:
                results.append(measure(task, batch_size, arguments.rounds, list(CONTENDERS), update))
    seconds = command_to_first_step()
    print(f"{os.cpu_count()} cores, {machine.machine()}, Python {machine.python_version()}, "
          f"jax {version('jax')}, torch {version('torch')}")  # fmt: skip
    print(table(results))
    print(f"\nfrom the command to the first step: {seconds['cold']:.1f} s cold, {seconds['warm']:.1f} s warm")
    if arguments.json:
        files.write_text(arguments.json, json.dumps({"results": results, "command_to_first_step_s": seconds}, indent=2))
        figures.save(draw(results), arguments.json.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        cli.run(main)
