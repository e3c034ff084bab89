"""Train the tutorial's network."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

import parity
from jaxcnn import cli, data, files, fit, model, platform, sharding, weights
from jaxcnn.config import DEFAULTS, Config, read_config, resumed, to_json
from jaxcnn.run_directory import RunDirectory

EXAMPLES = """examples:
  python scripts/train.py --dataset digits                 a minute, nothing to download
  python scripts/train.py                                  the tutorial: 20 epochs of CIFAR-10
  python scripts/train.py --platform gpu --data-dir ~/tensorflow_datasets
  python scripts/train.py --resume                         go on after Ctrl-C, or any other end
  python scripts/train.py --resume --epochs 40             ... and for longer

A run directory holds config.json, metrics.jsonl (a line an epoch), curves.png, weights.safetensors and checkpoints/.
Exit status: 0 done; 1 the loss is not finite; 2 bad usage or input; 130, 143 after Ctrl-C, SIGTERM, having saved."""


def parser() -> cli.ArgumentParser:
    """The command line; a flag that is not given is None, and then the data set's default or the resumed run's."""
    parser = cli.ArgumentParser("Train the tutorial's network, or go on with a run.", EXAMPLES)
    add = parser.add_argument
    add("--platform", choices=platform.PLATFORMS, help="what to run on; without it, the best that JAX finds")
    add("--dataset", choices=DEFAULTS, help="cifar10 (default), or the embedded digits: 1,797 real ones, no download")
    cli.add_data_dir(parser)
    add(
        "--epochs",
        type=cli.positive_int,
        help=f"default {DEFAULTS['cifar10'].epochs}, digits {DEFAULTS['digits'].epochs}",
    )
    add("--batch-size", type=cli.positive_int, help=f"default {Config.batch_size}")
    add("--learning-rate", type=cli.number(0, 1e6),
        help=f"default {DEFAULTS['cifar10'].learning_rate}, digits {DEFAULTS['digits'].learning_rate}")  # fmt: skip
    add("--momentum", type=cli.number(0, 1), help=f"default {Config.momentum}")
    add("--seed", type=cli.seed, help="of initial weights, shuffles and dropout masks (default 0)")
    add("--precision", choices=["float32", "bfloat16"], help="of the computation; parameters stay float32 (default)")
    add("--init", metavar="WEIGHTS", help="start from these weights instead of random ones")
    add("--devices", metavar="N", default=1, type=cli.positive_int,
        help="divide each batch among N devices; on the CPU, N virtual ones (default 1)")  # fmt: skip
    add("--out", metavar="RUN", type=Path, help="the run directory (default runs/<dataset>)")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out; what is not given comes from its config.json",
    )
    return parser


def configuration(given: dict[str, Any], run: RunDirectory, resume: bool) -> Config:
    """The run's configuration: the resumed run's or the data set's default, with what was given in its place."""
    if "data_dir" in given and "://" not in given["data_dir"]:
        given["data_dir"] = str(Path(given["data_dir"]).expanduser().absolute())
    if resume:
        return resumed(read_config(run.config), given)
    return dataclasses.replace(DEFAULTS[given.get("dataset", "cifar10")], **given)


def main() -> int:
    """Parse, start JAX, load, train; the exit status."""
    arguments = vars(parser().parse_args())
    out, resume = arguments.pop("out"), arguments.pop("resume")
    chosen, count = arguments.pop("platform"), arguments.pop("devices")
    run = RunDirectory(out or Path("runs") / (arguments["dataset"] or "cifar10"))
    given = {name: value for name, value in arguments.items() if value is not None}
    if not resume:
        run.check_free()
    config = configuration(given, run, resume)
    devices = platform.start(chosen, cpu_devices=count)
    mesh = sharding.make_mesh(devices, count, config.batch_size)
    params = None
    if config.init and not resume:
        params = parity.load_weights(config.init).params
        network = model.model_for(params)
        config = dataclasses.replace(config, channels=network.channels, hidden=network.hidden)
    print(platform.describe(devices[:count], config.precision))
    dataset = data.load(config.dataset, config.data_dir)
    print(f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images", flush=True)
    if params is not None:
        weights.check_classes(params, dataset.class_names, config.init)
    with run.locked():
        if resume:
            files.write_text(run.config, to_json(config))
        else:
            run.create(config)
        return train(config, dataset, run, mesh, params)


def train(
    config: Config, dataset: data.Dataset, run: RunDirectory, mesh: Mesh, params: model.Params | None
) -> int:  # fmt: skip
    """Train in a run directory that is held, and say how it ended; the exit status."""
    try:
        history = fit.fit(config, dataset, run.path, mesh, params=params)
    except fit.Interrupted as stop:
        name = signal.Signals(stop.signum).name
        print(f"{name}: saved; go on with: python scripts/train.py --resume --out {run.path}", file=sys.stderr)
        return 128 + stop.signum
    except fit.Diverged as problem:
        todo = "the state before it is the newest checkpoint, try a lower --learning-rate"
        print(f"error: {problem}: {run.path}; {todo}", file=sys.stderr)
        return 1
    print(f"trained {len(history)} epochs: test accuracy {history[-1]['test_accuracy']:.2%}")
    for what, path in {"run": run.path, "curves": run.curves, "weights": run.weights}.items():
        print(f"{what:8} {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
