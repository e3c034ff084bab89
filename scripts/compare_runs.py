"""Compare training runs: accuracy against training compute."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

from jaxcnn import cli, figures, files, platform
from jaxcnn.compute import training_pflop
from jaxcnn.config import DEFAULTS, Config, read_config
from jaxcnn.errors import UserError
from jaxcnn.figures import Trainings
from jaxcnn.paths import at_home
from jaxcnn.recipe import recipe_for
from jaxcnn.run_directory import RunDirectory

EXAMPLES = """examples:
  python scripts/compare_runs.py runs/cifar10 runs/speedrun-0 runs/speedrun-1 --figure accuracy.png
  python scripts/compare_runs.py runs/cifar10 runs/fast

Runs that differ only in their seed share a line, with the accuracy after the last epoch that all of them have."""

# Published, on the original images: airbench94 (Jordan 2024, arXiv 2404.00498) and the ResNet-18 that it compares with.
PUBLISHED = {
    "airbench94 94.0 %\npublished, original images": (0.284, 0.94),
    "ResNet-18 96.0 %\npublished, original images": (32.3, 0.96),
}
FREE = ("seed", "data_dir")  # fields of a configuration in which runs of one line may differ
ROW = "{:{wide}}  {:>5}  {:>8}  {:>8}  {:>8}  {}"


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    parser.add_argument("runs", metavar="RUN", type=at_home, nargs="+", help="a run directory")
    parser.add_argument("--figure", type=at_home, metavar="FILE", help="draw accuracy against compute (.png, .svg ...)")
    return parser


def read(path: Path) -> tuple[Config, list[dict[str, float]]]:
    """Return a run's configuration and the metrics of its epochs, each with `pflop`."""
    run, wanted = RunDirectory(path), {"epoch", "step", "test_accuracy"}
    config = read_config(run.config)
    lines = [line for line in files.read_json_lines(run.metrics) if line.keys() >= wanted]
    if [line["epoch"] for line in lines] != [*range(1, len(lines) + 1)] or not lines:
        todo = f"train it to the end: python scripts/train.py --resume --out {path}"
        raise UserError(
            "not a line for each epoch from the first" if lines else "no epoch has ended", run.metrics, todo
        )
    return config, [line if "pflop" in line else line | {"pflop": computed(config, line)} for line in lines]


def computed(config: Config, line: dict[str, float]) -> float:
    """Count the PFLOP of a run of version 0.1, which did not count, as if the last batch of an epoch were full."""
    epoch = int(line["epoch"])
    return training_pflop(recipe_for(config), int(line["step"]) // epoch * config.batch_size, epoch)


def trained_on(config: Config) -> str:
    """Name the data set of a run; for your own pictures, the folder."""
    return f"folder {config.data_dir}" if config.dataset == "folder" else config.dataset


def grouped(runs: dict[Path, tuple[Config, list[dict[str, float]]]]) -> dict[Config, list[Path]]:
    """Group the runs that differ only in FREE fields. Raise UserError if they cannot be compared."""
    groups: dict[Config, list[Path]] = {}
    (first, (reference, _)), *_ = runs.items()
    for path, (config, _) in runs.items():
        if trained_on(config) != trained_on(reference):
            what = f"a run of {trained_on(config)}, where {first} is of {trained_on(reference)}"
            raise UserError(what, path, "compare runs of one data set")
        group = groups.setdefault(dataclasses.replace(config, **{name: getattr(Config(), name) for name in FREE}), [])
        twin = next((other for other in group if runs[other][0].seed == config.seed), None)
        if twin:
            raise UserError(f"the same training as {twin}, seed {config.seed}", path, "name one of them")
        group.append(path)
    return groups


def title(config: Config) -> str:
    """Name a group of runs: the recipe, and what is not its default."""
    default, given = dataclasses.asdict(DEFAULTS[config.recipe][config.dataset]), dataclasses.asdict(config)
    others = {name: value for name, value in given.items() if name not in FREE and value != default[name]}
    return ", ".join([config.recipe, *(f"{name.replace('_', ' ')} {value}" for name, value in others.items())])


def trainings(name: str, runs: Sequence[list[dict[str, float]]]) -> Trainings:
    """Put the epochs that all runs have into arrays."""
    epochs = min(map(len, runs))
    values: Any = lambda key: np.array([[line[key] for line in lines[:epochs]] for lines in runs])  # noqa: E731
    return Trainings(name, values("pflop")[0], values("test_accuracy"))


def table(groups: dict[Config, Trainings]) -> str:
    """Return the groups' results as aligned text."""
    wide = max(len(some.name) for some in groups.values())
    lines = [ROW.format("recipe", "seeds", "epochs", "PFLOP", "accuracy", "lowest to highest", wide=wide)]
    for config, some in groups.items():
        seeds, epochs = some.accuracy.shape
        last, of = some.accuracy[:, -1], f" of {config.epochs}" if epochs < config.epochs else ""
        reach = f"{last.min():.2%} to {last.max():.2%}" if seeds > 1 else ""
        row = some.name, seeds, f"{epochs}{of}", f"{some.pflop[-1]:.3g}", f"{last.mean():.2%}", reach
        lines.append(ROW.format(*row, wide=wide).rstrip())
    return "\n".join(lines)


def main() -> None:
    """Read, group, print, draw."""
    arguments = parser().parse_args()
    if arguments.figure:
        files.check_folder(arguments.figure)
        figures.check_format(arguments.figure)
    platform.start("cpu")
    runs = {path: read(path) for path in dict.fromkeys(arguments.runs)}
    groups = {config: trainings(title(config), [runs[path][1] for path in some])
              for config, some in grouped(runs).items()}  # fmt: skip
    print(table(groups))
    if arguments.figure:
        (dataset, *_) = {config.dataset for config in groups}
        heading = {"cifar10": "CIFAR-10"}.get(dataset, dataset) + ": test accuracy by training compute"
        figure = figures.accuracy_by_compute([*groups.values()], PUBLISHED if dataset == "cifar10" else {}, heading)
        figures.save(figure, arguments.figure)
        print(f"wrote {arguments.figure}")


if __name__ == "__main__":
    cli.run(main)
