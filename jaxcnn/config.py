"""What determines a training run, as one frozen value that `config.json` holds."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxcnn.errors import UserError


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the tutorial's."""

    dataset: Literal["cifar10", "digits"] = "cifar10"
    data_dir: str | None = None  # None: tensorflow-datasets' own folder
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 0.001
    momentum: float = 0.9
    seed: int = 0  # of the initial weights, the shuffles and the dropout masks; 0 to 2**32 - 1
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters and updates are float32
    channels: int = 32  # the widths of the network: of its convolutions
    hidden: int = 512  # and of its hidden dense layer
    init: str | None = None  # the weights that it started from; None: drawn from PyTorch's initial distribution
    # A field that was added later says since when; an older run, which lacks it, has its default.
    recipe: Literal["tutorial"] = field(default="tutorial", metadata={"since": "0.2"})  # the network, and its training


# The digits are 35 times fewer than CIFAR-10's images: the tutorial's learning rate would want hundreds of epochs.
DEFAULTS = {"cifar10": Config(), "digits": Config(dataset="digits", epochs=10, learning_rate=0.01)}


def to_json(config: Config) -> str:
    """Write the text of `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """Read a run's configuration, of this or an earlier version; raise UserError naming a field that is not right."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"cannot read a configuration ({problem})", path, "is this a run directory?") from None
    kinds: dict[str, Any] = {known.name: known.type for known in dataclasses.fields(Config)}
    required = {known.name for known in dataclasses.fields(Config) if "since" not in known.metadata}
    todo = "use the version that wrote it, or train with another --out"
    if not isinstance(fields, dict):
        raise UserError(f"not a configuration but {type(fields).__name__}", path, todo)
    for what, names in ("missing", required - fields.keys()), ("unknown", fields.keys() - kinds.keys()):
        if names:
            raise UserError(f"not a configuration of this version: {what} {', '.join(sorted(names)):.80}", path, todo)
    for name, value in fields.items():
        kind = kinds[name]
        if not _is_a(value, kind) or (kind is int and name != "seed" and value == 0):
            choices = " or ".join(getattr(choice, "__name__", choice) for choice in get_args(kind) or [kind])
            raise UserError(f"{name} is {value!r:.60}, not {choices}", path, "correct it, or train again")
    return Config(**fields)


def _is_a(value: Any, kind: Any) -> bool:
    """Tell if a JSON value is of a field's type: a choice, text, or a number that is not absurd."""
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < (2**32 if kind is int else 1e9)
    return value in get_args(kind) if get_origin(kind) is Literal else isinstance(value, kind)


def changed(config: Config, given: dict[str, Any], free: Collection[str], whose: str, todo: str) -> Config:
    """Change the fields that are given. Raise UserError if one of them is not free to differ from the configuration."""
    for name, value in given.items():
        if name not in free and value != getattr(config, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{whose} has {name} {getattr(config, name)}, not {value}", flag, todo)
    return dataclasses.replace(config, **given)


RESUMABLE = ("epochs", "learning_rate", "data_dir")
resumed = partial(changed, free=RESUMABLE, whose="the run", todo="leave it out, or train another run")
