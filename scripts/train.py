"""Train a network: the tutorial's, or another recipe's."""

import dataclasses
import json
import re
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import checkpoints, cli, data, files, fit, platform, processes, sharding, weights
from jaxcnn.config import DATASETS, DEFAULTS, Config, changed, read_config, resumed, to_json
from jaxcnn.errors import UserError
from jaxcnn.networks import widths
from jaxcnn.paths import at_home
from jaxcnn.run_directory import RunDirectory
from jaxcnn.weights import Weights

EXAMPLES = """examples:
  python scripts/train.py --dataset digits                 a minute, nothing to download
  python scripts/train.py                                  the tutorial: 20 epochs of CIFAR-10
  python scripts/train.py --platform gpu --data-dir ~/tensorflow_datasets
  python scripts/train.py --dataset folder --data-dir DIR  your own pictures: DIR/train/cat/1.jpg, ..., or DIR/cat/1.jpg
  python scripts/train.py --resume                         go on after Ctrl-C, or any other end
  python scripts/train.py --resume --epochs 40             ... and for longer
  python scripts/train.py --coordinator node1:9876 --num-processes 2 --process-id 0     on node1, and with 1 on node2
  srun python scripts/train.py --coordinator auto          in a Slurm job

A run directory holds config.json, metrics.jsonl (a line an epoch), curves.png, weights.safetensors and checkpoints/.
Exit status: 0 done; 1 the loss is not finite; 2 bad usage or input; 130, 143 after Ctrl-C, SIGTERM, having saved."""


def by_recipe(field: str) -> str:
    """Say the defaults of a field, of each recipe and data set."""
    texts = []
    for recipe, some in DEFAULTS.items():
        usual, *others = ((dataset, getattr(config, field)) for dataset, config in some.items())
        different = "".join(f", {dataset} {value:g}" for dataset, value in others if value != usual[1])
        texts.append(f"{recipe} {usual[1]:g}{different}")
    return "default " + "; ".join(texts)


def parser() -> cli.ArgumentParser:
    """Make the command line; a flag that is not given is None: the data set's default or the resumed run's applies."""
    parser = cli.ArgumentParser("Train a network, the tutorial's or speedrun, or go on with a run.", EXAMPLES)
    add = parser.add_argument
    add("--platform", choices=platform.PLATFORMS, help="what to run on; without it, the best that JAX finds")
    add("--recipe", choices=DEFAULTS, help="the network and its training: tutorial (default); speedrun, for accuracy "
        "in the same compute; speedrun-large, in three times as much")  # fmt: skip
    add("--dataset", choices=DATASETS, help="cifar10 (default); the embedded digits: 1,797 real ones, no download; "
        "or folder: your own pictures, in --data-dir")  # fmt: skip
    cli.add_data_dir(parser)
    add("--epochs", type=cli.positive_int, help=by_recipe("epochs"))
    add("--batch-size", type=cli.positive_int, help=by_recipe("batch_size"))
    add("--learning-rate", type=cli.number(0, 1e6), help=by_recipe("learning_rate"))
    add("--momentum", type=cli.number(0, 1), help=by_recipe("momentum"))
    add("--seed", type=cli.seed, help="of initial weights, shuffles and dropout masks (default 0)")
    add("--precision", choices=["float32", "bfloat16"], help="of the computation; parameters stay float32 (default)")
    add("--init", metavar="WEIGHTS", help="start from these weights instead of random ones")
    add("--devices", metavar="N", default=0,
        type=lambda text: None if text == "all" else cli.positive_int(text), help="divide each batch among N, or all, "
        "devices of each process; on a CPU, virtual (default 1; one a core for large batches)")  # fmt: skip
    add("--coordinator", metavar="HOST:PORT", help="one of many processes: the address of process 0, or auto "
        "for what Slurm, Open MPI, Kubernetes or a TPU pod says")  # fmt: skip
    add("--num-processes", metavar="N", type=cli.positive_int, help="how many processes there are")
    add("--process-id", metavar="I", type=lambda text: 0 if text == "0" else cli.positive_int(text),
        help="which one this is, from 0; process 0 writes and prints")  # fmt: skip
    add("--out", metavar="RUN", type=at_home, help="the run directory (default runs/<dataset>)")
    add("--resume", action="store_true", help="go on with the run in --out; its config.json gives all other settings")
    return parser


def planned(given: dict[str, Any], run: RunDirectory, resume: bool) -> Config:
    """Apply the given flags to the resumed run's configuration or the data set's default."""
    if resume:
        if not run.config.exists():
            raise UserError("no run to go on with", run.path, "leave --resume out to start one, or name a run by --out")
        return resumed(read_config(run.config), given)
    return dataclasses.replace(DEFAULTS[given.get("recipe", "tutorial")][given.get("dataset", "cifar10")], **given)


def configured(given: dict[str, Any], run: RunDirectory, resume: bool) -> tuple[Config, Weights | None]:
    """Return the configuration of the run, and its initial weights if it has any."""
    if not resume:
        run.check_free()
    config = planned(given, run, resume)
    # A run that was stopped before its first checkpoint has not used them yet.
    init = parity.load_weights(config.init) if config.init and not checkpoints.saved(run.checkpoints) else None
    return dataclasses.replace(config, widths=widths(init.network)) if init else config, init


def main() -> int:
    """Parse, join the other processes if there are any, train, and return the exit status."""
    arguments = vars(parser().parse_args())
    cluster = [arguments.pop(name) for name in ("coordinator", "num_processes", "process_id")]
    processes.check_flags(*cluster)
    with processes.joined(*cluster):
        return train(arguments, alone=cluster[0] is None)


def train(arguments: dict[str, Any], alone: bool) -> int:
    """Start JAX, load weights and data, train in the run directory, say how it ended, and return the exit status.

    alone: there is no other process.
    """
    out, resume, chosen, count = (arguments.pop(name) for name in ("out", "resume", "platform", "devices"))
    run = RunDirectory(out or Path("runs") / (arguments["dataset"] or "cifar10"))
    given = {name: value for name, value in arguments.items() if value is not None}
    if "data_dir" in given and not re.match(r"(https?|file):", given["data_dir"]):
        given["data_dir"] = str(at_home(given["data_dir"]).absolute())
    if count == 0 and alone:
        devices, count = platform.start_for(planned(given, run, resume).batch_size, chosen), None
    else:
        count = 1 if count == 0 else count
        devices = platform.start(chosen, cpu_devices=count)
    processes.settle(devices)
    config, init = configured(given, run, resume) if sharding.is_first() else (None, None)
    of_first = Config(**json.loads(sharding.text_from_first(to_json(config) if config else "")))
    config = changed(of_first, given, ["data_dir"], "process 0", "give all the same")
    mesh = sharding.make_mesh(devices, count, config.batch_size)
    print(platform.describe(list(mesh.devices.flat), config.precision))
    dataset = data.load(config.dataset, config.data_dir)
    sizes = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    print(f"{dataset.name}: {sizes} in {len(dataset.class_names):,} classes")
    if sharding.is_first() and resume and run.weights.exists():
        weights.check_names(weights.load(run.weights), dataset.name, dataset.class_names, config.data_dir)
    if init:
        weights.check_classes(init, dataset.class_names, config.init)
    try:
        with run.locked() if sharding.is_first() else nullcontext():
            if sharding.is_first() and resume:
                files.write_text(run.config, to_json(config))
            elif sharding.is_first():
                run.create(config)
            history = fit.fit(config, dataset, run.path, mesh, variables=init.variables if init else None)
    except fit.Interrupted as stop:
        name = signal.Signals(stop.signum).name
        again = cli.as_called(f"python scripts/train.py --resume --out {shlex.quote(str(run.path))}")
        print(f"{name}: saved; go on with: {again}", file=sys.stderr)
        return 128 + stop.signum
    except fit.Diverged as problem:
        todo = "the state before it is the newest checkpoint, try a lower --learning-rate"
        print(f"error: {problem}: {run.path}; {todo}", file=sys.stderr)
        return 1
    if sharding.is_first():
        last = history[-1]
        computed = f", {last['pflop']:.3g} PFLOP" if "pflop" in last else ""  # version 0.1 did not count
        epochs = "1 epoch" if len(history) == 1 else f"{len(history)} epochs"
        print(f"trained {epochs}: test accuracy {last['test_accuracy']:.2%}{computed}")
        for what, path in {"run": run.path, "curves": run.curves, "weights": run.weights}.items():
            print(f"{what:8} {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
