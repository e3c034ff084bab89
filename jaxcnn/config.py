"""What determines a training run, as one frozen value that `config.json` holds."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxcnn.errors import UserError

WIDTHS = {"tutorial": 2, "speedrun": 3, "speedrun-large": 3}  # how many each recipe's network has


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the tutorial's. Raise UserError for an invalid field."""

    dataset: Literal["cifar10", "digits", "folder"] = "cifar10"
    data_dir: str | None = None  # None: tensorflow-datasets' own folder; of `folder`, the pictures'
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 0.001
    momentum: float = 0.9
    seed: int = 0  # of the initial weights, the shuffles and the dropout masks; 0 to 2**32 - 1
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters and updates are float32
    widths: tuple[int, ...] = (32, 512)  # of the network, in the order of its fields
    init: str | None = None  # the weights that it started from; None: drawn from PyTorch's initial distribution
    # A field that was added later says since which version; an older run, which lacks it, has its default.
    recipe: Literal["tutorial", "speedrun", "speedrun-large"] = field(
        default="tutorial", metadata={"since": "0.2"}
    )  # the network, and its training

    def __post_init__(self) -> None:
        """Make a tuple of the list that JSON has, and check all fields."""
        if isinstance(self.widths, list):
            object.__setattr__(self, "widths", tuple(self.widths))
        _check(vars(self), "Config", "correct it")


def _check(fields: Mapping[str, Any], where: object, todo: str) -> None:
    """Raise UserError naming the first invalid field."""
    kinds: dict[str, Any] = {known.name: known.type for known in dataclasses.fields(Config)}
    for name, value in fields.items():
        kind = kinds[name]
        if not _is_a(value, kind) or (kind is int and name != "seed" and value == 0):
            choices = " or ".join(getattr(choice, "__name__", str(choice)) for choice in get_args(kind) or [kind])
            least = 0 if name == "seed" else 1
            numbers = {int: f"a whole number from {least} to {2**32 - 1}", float: "a number from 0 to 1e9"}
            wanted = "whole numbers from 1" if get_origin(kind) is tuple else numbers.get(kind, choices)
            raise UserError(f"{name} is {value!r:.60}, not {wanted}", where, todo)
    known = WIDTHS[fields.get("recipe", "tutorial")]
    if len(fields["widths"]) != known:
        raise UserError(f"{len(fields['widths'])} widths, this network has {known}", where, todo)


def _is_a(value: Any, kind: Any) -> bool:
    """Tell if a value is of a field's type: a choice, text, or a number that is not absurd."""
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_is_a(one, int) and one > 0 for one in value)
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < (2**32 if kind is int else 1e9)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    return isinstance(value, kind)


TUTORIAL = Config()
SPEEDRUN = Config(recipe="speedrun", epochs=14, batch_size=1000, learning_rate=0.17, momentum=0.6, widths=(32, 96, 128))
LARGE = replace(SPEEDRUN, recipe="speedrun-large", epochs=13, widths=(48, 192, 320))
# There are 35 times fewer digits than CIFAR-10 images, so batches are smaller, or steps larger. Your own pictures are
# usually fewer still.
DEFAULTS: dict[str, dict[str, Config]] = {
    "tutorial": {
        "cifar10": TUTORIAL,
        "digits": replace(TUTORIAL, dataset="digits", epochs=10, learning_rate=0.01),
        "folder": replace(TUTORIAL, dataset="folder", epochs=30, learning_rate=0.01),
    },
    **{config.recipe: {
        "cifar10": config,
        "digits": replace(config, dataset="digits", epochs=10, batch_size=100),
        "folder": replace(config, dataset="folder", epochs=30, batch_size=32),
    } for config in (SPEEDRUN, LARGE)},
}  # fmt: skip
DATASETS = ("cifar10", "digits", "folder")


def to_json(config: Config) -> str:
    """Write the text of `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """Read a run's configuration, of this or an earlier version; raise UserError naming an invalid field."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path.name} in it", path.parent, "name a run directory, which train.py made") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"cannot read a configuration ({problem})", path, "is this a run directory?") from None
    if isinstance(fields, dict) and {"channels", "hidden"} <= fields.keys():  # version 0.1
        fields["widths"] = [fields.pop("channels"), fields.pop("hidden")]
    known = {field.name for field in dataclasses.fields(Config)}
    required = {field.name for field in dataclasses.fields(Config) if "since" not in field.metadata}
    todo = "use the version that wrote it, or train with another --out"
    if not isinstance(fields, dict):
        raise UserError(f"not a configuration but {type(fields).__name__}", path, todo)
    for what, names in ("missing", required - fields.keys()), ("unknown", fields.keys() - known):
        if names:
            raise UserError(f"not a configuration of this version: {what} {', '.join(sorted(names)):.80}", path, todo)
    _check(fields, path, "correct it, or train again")
    return Config(**fields | {"widths": tuple(fields["widths"])})


def changed(config: Config, given: dict[str, Any], free: Collection[str], whose: str, todo: str) -> Config:
    """Change the fields that are given. Raise UserError if one of them is not free to differ from the configuration."""
    for name, value in given.items():
        if name not in free and value != getattr(config, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{whose} has {name} {getattr(config, name)}, not {value}", flag, todo)
    return replace(config, **given)


RESUMABLE = ("epochs", "learning_rate", "data_dir")
resumed = partial(changed, free=RESUMABLE, whose="the run", todo="leave it out, or train another run")
