"""Compare the speed of this project, stock Flax layers and PyTorch, timed in turn in processes of their own."""

import json
import os
import platform as machine
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import contenders

from jaxcnn import cli
from jaxcnn.progress import Update, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python scripts/benchmark.py                                  about 8 minutes; keep the machine otherwise idle
  python scripts/benchmark.py --batch-sizes 32 --json bench.json    writes bench.png too
  python scripts/benchmark.py --scaling --json bench.json           and bench.scaling.png

Each contender runs in a process of its own on all cores, with the same network and images. All are warmed up, then
timed in turn (A B C A B C ...). A ratio is PyTorch's best median over this project's; above 1, ours is faster."""

CONTENDERS = {  # what they are, and their colours in figures
    "jaxcnn": ("this project", "#4477aa"),
    "flax": ("stock Flax layers, one jitted donated step at a time", "#88ccee"),
    "torch": ("PyTorch eager", "#ddaa99"),
    "torch-channels-last": ("PyTorch eager, channels last", "#cc6677"),
    "torch-compile": ("torch.compile", "#882255"),
}
TASKS = ("training", "inference")
SCALING = {"batch size": (1, 4, 16, 64, 256, 1024, 2048), "width": (1, 2, 3, 4)}
ROW = "  {:20} {median:10.1f} {min:8.1f} {max:8.1f} {share_of_matmul:10.0%} {first_step_s:9.1f} s {peak_mb:6.0f} MB"
HEAD = f"  {'':20} {'ms: median':>10} {'min':>8} {'max':>8} {'of matmul':>10} {'first step':>11} {'peak':>9}"
FIRST_STEP = """
from jaxcnn import data, fit, platform, sharding, train
from jaxcnn.config import DEFAULTS
mesh = sharding.make_mesh(platform.start(None), 1, DEFAULTS["digits"].batch_size)
trainer = fit.Trainer(DEFAULTS["digits"], data.load("digits"), mesh)
trainer.steps(train.create_state(trainer.recipe, 0), 1)"""


def flops(task: str, width: int) -> int:
    """Return the multiplications and additions of an image's matrix products: two for each weight and position."""
    channels, hidden = 32 * width, 512 * width
    conv1, rest = 2 * 1024 * 27 * channels, 2 * (1024 * 9 * channels**2 + 256 * channels * hidden + 10 * hidden)
    # Training does each product three times (forward, both gradients), conv1's twice: its input needs no gradient.
    return {"training": 2 * conv1 + 3 * rest, "inference": conv1 + rest}[task]


def measure(
    task: str, batch_size: int, rounds: int, update: Update, width: int = 1, names: Iterable[str] = CONTENDERS
) -> dict[str, Any]:
    """Time the contenders in turn, and return their milliseconds a step and shares of the speed of matrix products."""
    running, absent = {}, {}
    for name in [*names, "matmul"]:
        try:
            running[name] = contenders.Contender(name, task, batch_size, width)
        except Exception as problem:  # torch.compile wants a C++ compiler
            absent[name] = str(problem).partition("\n")[0]
    steps = {name: max(1, round(1000 / contender.run(1))) for name, contender in running.items()}
    for name, contender in running.items():
        contender.run(steps[name])  # compiles, if the number of images is part of the program
    for _ in range(rounds):
        for name, contender in running.items():
            contender.ms.append(contender.run(steps[name]))
        update(1)
    for contender in running.values():
        contender.process.shutdown()
    gflops = 2 * 2048**3 / statistics.median(running.pop("matmul").ms) / 1e6
    rows: dict[str, Any] = {}
    for name, contender in running.items():
        ms = {"median": statistics.median(contender.ms), "min": min(contender.ms), "max": max(contender.ms)}
        share = flops(task, width) * batch_size / ms["median"] / 1e6 / gflops
        rows[name] = {"ms": ms, "share_of_matmul": share, **contender.facts}
    torches = [row["ms"]["median"] for name, row in rows.items() if name.startswith("torch")]
    ratio = min(torches) / rows["jaxcnn"]["ms"]["median"] if torches else None
    summary = {"task": task, "batch_size": batch_size, "matmul_gflops": gflops, "ratio": ratio}
    return {**summary, "rows": rows, "absent": absent}


def command_to_first_step(**settings: str) -> float:
    """Return the seconds from the command to the end of the first step on the digits."""
    command, root = [sys.executable, "-c", FIRST_STEP], Path(__file__).parents[1]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=root, env=os.environ | settings, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as aligned text."""
    lines = []
    for result in results:
        ratio = f"  best PyTorch / jaxcnn = {result['ratio']:.2f}" if result["ratio"] else ""
        speed = f"matrix products at {result['matmul_gflops']:.0f} GFLOP/s"
        lines += [f"\n{result['task']}, batch {result['batch_size']}: {speed}{ratio}", HEAD]
        for name, row in result["rows"].items():
            count, sent = row["dispatches_and_bytes_sent"] or (0, 0)
            cost = f"  {row['steps']} steps in {count} dispatch{'es' * (count > 1)}, {sent} bytes sent" if count else ""
            lines.append(ROW.format(name, **row["ms"], **row) + cost)
        lines += [f"  {name:20} not measured: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> "Figure":
    """Draw each contender's images a second, with a panel for each task and a group of bars for each batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        chosen = [result for result in results if result["task"] == task]
        for place, (name, (label, colour)) in enumerate(CONTENDERS.items(), start=-2):
            measured = [(group, result) for group, result in enumerate(chosen) if name in result["rows"]]
            heights = [1000 * result["batch_size"] / result["rows"][name]["ms"]["median"] for _, result in measured]
            axes.bar([group + 0.16 * place for group, _ in measured], heights, 0.15, color=colour, label=label)
        axes.set_xticks(range(len(chosen)), [f"batch {r['batch_size']}" for r in chosen])
        axes.set(title=task, ylabel="images a second")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def scaling(rounds: int, update: Update) -> dict[str, list[dict[str, Any]]]:
    """Measure training by batch size, and at batch 32 by width, in multiples of the tutorial's."""
    training = partial(measure, "training", rounds=rounds, update=update, names=("jaxcnn", "torch-channels-last"))
    sizes, widths = SCALING.values()
    return {"batch size": [training(size) for size in sizes], "width": [training(32, width=width) for width in widths]}


def draw_scaling(results: dict[str, list[dict[str, Any]]]) -> "Figure":
    """Draw milliseconds a step by batch size and by width, this project's and PyTorch's, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (what, measured) in zip(figure.subplots(1, 2), results.items(), strict=True):
        for name in measured[0]["rows"]:
            low, middle, high = ([r["rows"][name]["ms"][k] for r in measured] for k in ("min", "median", "max"))
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
    """Return the command line's parser."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all numbers as JSON, and draw figures beside it")
    add("--batch-sizes", type=int, choices=[2**k for k in range(12)], nargs="+", default=[32, 128, 512], metavar="N",
        help="powers of two up to 2048 (default 32 128 512)")  # fmt: skip
    add("--rounds", type=cli.positive_int, default=7, metavar="N", help="how often each is timed (default 7)")
    add("--scaling", action="store_true", help="also by batch size 1 to 2048 and width x1 to x4; 5 minutes more")
    return parser


def main() -> None:
    """Measure, print the table, and write JSON and figures."""
    arguments = parser().parse_args()
    # Here, since they import JAX, and PyTorch's processes import this module.
    from jaxcnn import figures, files
    from parity.files import require_torch

    require_torch("scripts/benchmark.py")
    files.check_folder(arguments.json)
    rounds, sizes = arguments.rounds, arguments.batch_sizes
    points = len(TASKS) * len(sizes) + (sum(map(len, SCALING.values())) if arguments.scaling else 0)
    with progress("benchmark", rounds * points, "rounds") as update:
        results = [measure(task, size, rounds, update) for task in TASKS for size in sizes]
        grown = scaling(rounds, update) if arguments.scaling else {}
    # A user waits for the warm one, since pip compiles bytecode as it installs.
    cold = command_to_first_step(PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=os.devnull)
    seconds = {"cold": cold, "warm": command_to_first_step()}
    versions = {name: version(name) for name in ("jax", "flax", "torch")}
    print(f"{os.cpu_count()} cores, {machine.machine()}, Python {machine.python_version()}", end=", ")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(table(sum(grown.values(), results)))
    print(f"\nfrom the command to the first step: {seconds['cold']:.1f} s cold, {seconds['warm']:.1f} s warm")
    if arguments.json:
        report = {"results": results, "scaling": grown, "command_to_first_step_s": seconds, "versions": versions}
        files.write_text(arguments.json, json.dumps(report, indent=2) + "\n")
        figures.save(draw(results), arguments.json.with_suffix(".png"))
        if grown:
            figures.save(draw_scaling(grown), arguments.json.with_suffix(".scaling.png"))


if __name__ == "__main__":
    cli.run(main)
