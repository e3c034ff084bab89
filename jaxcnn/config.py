"""Everything that determines a training run, in one frozen value that `config.json` holds."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxcnn.errors import UserError


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the tutorial's.

    dataset, data_dir: what is trained on, and where it lies (None: tensorflow-datasets' own folder).
    epochs, batch_size, learning_rate, momentum: of stochastic gradient descent.
    seed: of the initial weights, the shuffles and the dropout masks; 0 to 2**32 - 1.
    precision: of the computation; parameters and their updates are float32 always.
    channels, hidden: the network's widths.
    init: the weights that it started from, None for a draw from PyTorch's initial distribution.
    """

    dataset: Literal["cifar10", "digits"] = "cifar10"
    data_dir: str | None = None
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 0.001
    momentum: float = 0.9
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    channels: int = 32
    hidden: int = 512
    init: str | None = None


# The digits are 35 times fewer than CIFAR-10's images: the tutorial's learning rate would want hundreds of epochs.
DEFAULTS = {"cifar10": Config(), "digits": Config(dataset="digits", epochs=10, learning_rate=0.01)}


def to_json(config: Config) -> str:
    """The text of `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """The configuration in `path`; UserError naming the first field that is missing, unknown or of the wrong kind."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"cannot read a configuration ({problem})", path, "is this a run directory?") from None
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}
    if not isinstance(fields, dict) or fields.keys() != known.keys():
        odd = sorted(fields.keys() ^ known.keys()) if isinstance(fields, dict) else type(fields).__name__
        raise UserError(f"not a configuration of this version (fields missing or unknown: {odd})", path, "train anew")
    for name, kind in known.items():
        if not _is_a(fields[name], kind) or (kind is int and name != "seed" and fields[name] == 0):
            wanted = " or ".join(getattr(choice, "__name__", choice) for choice in get_args(kind) or [kind])
            raise UserError(f"{name} is {fields[name]!r:.60}, not {wanted}", path, "mend it or train anew")
    return Config(**fields)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type: a choice, text, or a number that is not absurd."""
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < (2**32 if kind is int else 1e9)
    return value in get_args(kind) if get_origin(kind) is Literal else isinstance(value, kind)


def resumed(config: Config, given: dict[str, Any]) -> Config:
    """A run's configuration with what may change while it goes on; UserError naming what may not."""
    for name, value in given.items():
        known = getattr(config, name)
        if name not in ("epochs", "learning_rate", "data_dir") and value != known:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"the run has {name} {known}, not {value}", flag, "leave it out, or train anew")
    return dataclasses.replace(config, **given)
