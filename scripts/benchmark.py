"""Compare the speed of this project, stock Flax layers and PyTorch, timed in turn in separate processes."""

import json
import os
import platform as machine
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import contenders
from case import CIFAR10, Case
from contenders import KERNELS, SIDE

from jaxcnn import cli
from jaxcnn.config import DEFAULTS
from jaxcnn.errors import UserError
from jaxcnn.paths import at_home
from jaxcnn.progress import Update, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python scripts/benchmark.py                                  about 8 minutes; keep the machine otherwise idle
  python scripts/benchmark.py --batch-sizes 32 --json bench.json    writes bench.png too
  python scripts/benchmark.py --scaling --json bench.json           and bench.scaling.png
  python scripts/benchmark.py --recipe speedrun                     the same network and recipe in PyTorch

Each contender runs in a process of its own on all cores, with the same network and images. All are warmed up, then
timed in turn (A B C A B C ...). A ratio is PyTorch's best median over this project's; above 1, ours is faster.
Training is a whole step: augmentation, gradients, optimizer. Speedrun's images grow: each size is timed, and the times
are added up to the whole training. Inference takes one view of an image, where speedrun's evaluation takes six.
Prediction is the time of one image from a NumPy array to its probabilities: Weights.predict, and the same in PyTorch.
The limit adds up the least time of each product of a step: its FLOP at the speed of large matrix products, the faster
of PyTorch's and JAX's, or its parameters' bytes at the speed of a large addition, whichever takes longer."""

CONTENDERS = {  # what they are, and their colours in figures
    "jaxcnn": ("this project", "#4477aa"),
    "flax": ("stock Flax layers, one jitted donated step at a time", "#88ccee"),
    "torch": ("PyTorch eager", "#ddaa99"),
    "torch-channels-last": ("PyTorch eager, channels last", "#cc6677"),
    "torch-compile": ("torch.compile", "#882255"),
}
TASKS = ("training", "inference")  # at each batch size
RECIPES = {"tutorial": (32, 128, 512), "speedrun": (1000,), "speedrun-large": (1000,)}  # and their batch sizes
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
SCALING = {"batch size": (1, 4, 16, 64, 256, 1024, 2048), "width": (1, 2, 3, 4)}
ROW = "  {:20} {median:10.4g} {min:8.4g} {max:8.4g} {share_of_limit:10.0%} {first_step_s:9.1f} s {peak_mb:6.0f} MB"
HEAD = f"  {'':20} {'ms: median':>10} {'min':>8} {'max':>8} {'of limit':>10} {'first step':>11} {'peak':>9}"
FIRST_STEP = """
from jaxcnn import data, fit, platform, sharding, train
from jaxcnn.config import DEFAULTS
config = DEFAULTS["tutorial"]["digits"]
trainer = fit.Trainer(config, data.load("digits"), sharding.make_mesh(platform.start(None), 1, config.batch_size))
trainer.steps(train.create_state(trainer.recipe, 0), 1)"""


def stages(case: Case) -> list[tuple[int, int]]:
    """List the work that a step cannot avoid: the FLOP of each product of a layer, and the parameter bytes it moves.

    The forward pass and the input's gradient read the weights; the kernel's gradient reads and writes them and their
    momentum. Data between layers is left out: it can stay in the cache.
    """
    from jaxcnn.compute import layer_flop
    from jaxcnn.networks import variable_shapes
    from jaxcnn.recipe import WHITENING_SIZE, recipe_for

    network, found = recipe_for(case.config).network, []
    shapes = variable_shapes(network)
    is_first_gradient = "constants/whiten/kernel" in shapes and case.size > WHITENING_SIZE  # the second layer's
    for place, (name, image_flop) in enumerate(layer_flop(network, case.size).items()):
        is_constant = f"{name}/kernel" not in shapes
        kernel = shapes["constants/" * is_constant + f"{name}/kernel"]
        flop, weights = image_flop * case.batch_size, 4 * prod(kernel)
        found.append((flop, weights))
        if case.task == "training":
            found += [(flop, weights)] * (place > is_first_gradient) + [(flop, 4 * weights)] * (not is_constant)
    return found


def measure(case: Case, rounds: int, update: Update, names: Iterable[str] = CONTENDERS) -> dict[str, Any]:
    """Time the contenders in turn, and return their milliseconds a step and shares of the limit."""
    running, absent = contenders.in_turn([*names, *KERNELS], case, rounds, update)
    *products, addition = (statistics.median(running.pop(name).ms) for name in KERNELS)
    flop_per_ms, bytes_per_ms = 2 * SIDE**3 / min(products), 3 * 4 * SIDE**2 / addition
    limit = sum(max(flop / flop_per_ms, moved / bytes_per_ms) for flop, moved in stages(case))
    rows: dict[str, Any] = {}
    for name, contender in running.items():
        ms = {"median": statistics.median(contender.ms), "min": min(contender.ms), "max": max(contender.ms)}
        rows[name] = {"ms": ms, "share_of_limit": limit / ms["median"], **contender.facts}
    ratio = ratio_of({name: row["ms"]["median"] for name, row in rows.items()})
    speeds = {"limit_ms": limit, "gflops": flop_per_ms / 1e6, "gb_per_s": bytes_per_ms / 1e6}
    return {**asdict(case), **speeds, "ratio": ratio, "rows": rows, "absent": absent}


def ratio_of(times: dict[str, float]) -> float | None:
    """Return PyTorch's best time over this project's; None if there is no PyTorch."""
    torches = [time for name, time in times.items() if name.startswith("torch")]
    return min(torches) / times["jaxcnn"] if torches else None


def whole_training(results: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Add up a training of CIFAR-10 whose epochs have images of these sizes, from the step times at each size."""
    (batch_size,) = {result["batch_size"] for result in results}
    ms = {result["size"]: {name: row["ms"]["median"] for name, row in result["rows"].items()} for result in results}
    names = [name for name in CONTENDERS if all(name in row for row in ms.values())]
    seconds = {name: sum(ms[size][name] for size in sizes) * -(-CIFAR10 // batch_size) / 1000 for name in names}
    return {"batch_size": batch_size, "epochs": dict(Counter(sizes)), "seconds": seconds, "ratio": ratio_of(seconds)}


def command_to_first_step(**settings: str) -> float:
    """Return the seconds from the command to the end of the first step on the digits."""
    command, root = [sys.executable, "-c", FIRST_STEP], Path(__file__).parents[1]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=root, env=os.environ | settings, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def processor() -> str:
    """Name the processor and its widest instruction set that matters here, if Linux lists it."""
    about = Path("/proc/cpuinfo")
    known = dict(line.split(":", 1) for line in about.read_text().splitlines() if ":" in line) if about.exists() else {}
    known = {name.strip(): text.strip() for name, text in known.items()}
    widest = next((kind for kind in INSTRUCTIONS if kind in known.get("flags", "").split()), machine.machine())
    return f"{known.get('model name', machine.processor())} ({widest})"


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as aligned text."""
    lines = []
    for result in results:
        ratio = f"  best PyTorch / jaxcnn = {result['ratio']:.2f}" if result["ratio"] else ""
        speed = f"limit {result['limit_ms']:.3g} ms ({result['gflops']:.0f} GFLOP/s, {result['gb_per_s']:.0f} GB/s)"
        lines += [f"\n{result['task']}, batch {result['batch_size']}{detail(result)}: {speed}{ratio}", HEAD]
        for name, row in result["rows"].items():
            count, sent = row["dispatches_and_bytes_sent"] or (0, 0)
            cost = f"  {row['steps']} steps in {count} dispatch{'es' * (count > 1)}, {sent} bytes sent" if count else ""
            lines.append(ROW.format(name, **row["ms"], **row) + cost)
        lines += [f"  {name:20} not measured: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def detail(result: dict[str, Any]) -> str:
    """Say what is measured, where a recipe allows several cases."""
    if result["recipe"] == "tutorial":
        return ""
    return f", {result['size']} pixels" if result["task"] == "training" else ", one view of an image"


def whole_table(wholes: Sequence[dict[str, Any]]) -> str:
    """Return the whole trainings as aligned text."""
    lines = []
    for whole in wholes:
        ratio = f"  best PyTorch / jaxcnn = {whole['ratio']:.2f}" if whole["ratio"] else ""
        epochs = ", ".join(f"{number} at {size} pixels" for size, number in whole["epochs"].items())
        count = f"{sum(whole['epochs'].values())} epochs ({epochs})"
        lines += [f"\n\nthe whole training, batch {whole['batch_size']}: {count}{ratio}"]
        lines += [f"  {name:20} {seconds:10.0f} s" for name, seconds in whole["seconds"].items()]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> "Figure":
    """Draw each contender's images a second, with a panel for each task and a group of bars for each batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    names = [name for name in CONTENDERS if any(name in result["rows"] for result in results)]
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        chosen = [result for result in results if result["task"] == task]
        for place, name in enumerate(names, start=-(len(names) // 2)):
            label, colour = CONTENDERS[name]
            measured = [(group, result) for group, result in enumerate(chosen) if name in result["rows"]]
            heights = [1000 * result["batch_size"] / result["rows"][name]["ms"]["median"] for _, result in measured]
            axes.bar([group + 0.16 * place for group, _ in measured], heights, 0.15, color=colour, label=label)
        axes.set_xticks(range(len(chosen)), [f"batch {r['batch_size']}{detail(r)}".replace(", ", "\n") for r in chosen])
        axes.set(title=task, ylabel="images a second")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def scaling(rounds: int, update: Update) -> dict[str, list[dict[str, Any]]]:
    """Measure training by batch size, and at batch 32 by width, in multiples of the tutorial's."""
    training = partial(measure, rounds=rounds, update=update, names=("jaxcnn", "torch-channels-last"))
    sizes, widths = SCALING.values()
    cases = {"batch size": [Case("training", size) for size in sizes],
             "width": [Case("training", 32, width=width) for width in widths]}  # fmt: skip
    return {what: [training(case) for case in some] for what, some in cases.items()}


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
    add("--json", type=at_home, metavar="FILE", help="write all numbers as JSON, and draw figures beside it")
    add("--recipe", choices=RECIPES, default="tutorial", help="the network and its training (default tutorial)")
    add("--batch-sizes", type=cli.number(1, 2048, int), nargs="+", metavar="N",
        help="up to 2048 (default 32 128 512; 1000 for speedrun)")  # fmt: skip
    add("--rounds", type=cli.positive_int, default=7, metavar="N", help="how often each is timed (default 7)")
    add("--scaling", action="store_true",
        help="the tutorial's training by batch size 1 to 2048 and width x1 to x4 too; 5 minutes more")  # fmt: skip
    return parser


def main() -> None:
    """Measure, print the table, and write JSON and figures."""
    arguments = parser().parse_args()
    # Here, since they import JAX, and PyTorch's processes import this module.
    from jaxcnn import figures, files, platform
    from jaxcnn.recipe import recipe_for
    from parity.files import require_torch

    require_torch("scripts/benchmark.py")
    files.check_folder(arguments.json)
    recipe, rounds = arguments.recipe, arguments.rounds
    if arguments.scaling and recipe != "tutorial":
        raise UserError("it measures the tutorial's network", "--scaling", "leave it or --recipe out")
    platform.start("cpu")  # this process computes nothing: it only asks for shapes
    sizes = recipe_for(DEFAULTS[recipe]["cifar10"]).sizes
    batch_sizes = arguments.batch_sizes or RECIPES[recipe]
    trained = [Case("training", n, recipe, size=size) for n in batch_sizes for size in sorted(set(sizes or (32,)))]
    cases = [*trained, *(Case("inference", n, recipe) for n in batch_sizes)]
    if recipe == "tutorial":  # speedrun's evaluation takes six views of an image
        cases.append(Case("prediction", 1))
    names = [name for name in CONTENDERS if name != "flax" or recipe == "tutorial"]
    points = len(cases) + (sum(map(len, SCALING.values())) if arguments.scaling else 0)
    with progress("benchmark", rounds * points, "rounds") as update:
        results = [measure(case, rounds, update, names) for case in cases]
        grown = scaling(rounds, update) if arguments.scaling else {}
    of_batch = [[r for r in results if r["task"] == "training" and r["batch_size"] == n] for n in batch_sizes]
    wholes = [whole_training(some, sizes) for some in of_batch] if sizes else []
    # A user waits for the warm one, since pip compiles bytecode as it installs.
    with tempfile.TemporaryDirectory() as kept:  # what is compiled
        compiled = {"JAX_COMPILATION_CACHE_DIR": kept, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        cold = command_to_first_step(PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=os.devnull, **compiled)
        seconds = {"cold": cold, "warm": command_to_first_step(**compiled)}
    versions = {name: version(name) for name in ("jax", "flax", "torch")}
    kind = processor()
    print(f"{os.cpu_count()} cores, {kind}, Python {machine.python_version()}", end=", ")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(table(sum(grown.values(), results)) + whole_table(wholes))
    print(f"\nfrom the command to the first step: {seconds['cold']:.1f} s cold, {seconds['warm']:.1f} s warm")
    if arguments.json:
        drawn = {".png": draw(results)} | ({".scaling.png": draw_scaling(grown)} if grown else {})
        report = {"results": results, "whole_trainings": wholes, "scaling": grown}
        report |= {"command_to_first_step_s": seconds, "processor": kind, "versions": versions}
        files.write_text(arguments.json, json.dumps(report, indent=2) + "\n")
        for suffix, figure in drawn.items():
            figures.save(figure, arguments.json.with_suffix(suffix))
        print(*(f"wrote {arguments.json.with_suffix(suffix)}" for suffix in (".json", *drawn)), sep="\n")


if __name__ == "__main__":
    cli.run(main)
