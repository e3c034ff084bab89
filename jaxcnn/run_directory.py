"""The directory of a training run: where its files are, and who may write there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from jaxcnn import files, weights
from jaxcnn.config import Config, read_config, to_json
from jaxcnn.errors import UserError, os_errors
from jaxcnn.paths import at_home


def data_source(
    of: str | Path, trained_on: str | None, dataset: str | None, data_dir: str | None
) -> tuple[str, str | None]:
    """Return the data set that the weights of a file or a run are applied to, and where it is.

    It is the one given, else what they were trained on, else CIFAR-10. A folder of pictures is where their run had it.
    """
    name = dataset or trained_on or "cifar10"
    path = at_home(of)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if name == "folder" and data_dir is None and config.is_file():
        run = read_config(config)
        return name, run.data_dir if run.dataset == name else None
    return name, data_dir


class RunDirectory:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"  # a line of JSON an epoch
        self.checkpoints = path / "checkpoints"
        self.weights = path / weights.FILE  # after the last whole epoch
        self.curves = path / "curves.png"

    def check_free(self) -> None:
        """Raise UserError if there is a run already, or anything else."""
        with os_errors("cannot be used ({})", "choose another --out", self.path):
            if self.config.exists():
                raise UserError("there is a run already", self.path, "go on with --resume, or choose another --out")
            others = [p for p in self.path.glob("*") if p.name not in (".lock", "checkpoints")]
            if others or any(self.checkpoints.glob("*")):
                raise UserError("this directory is not empty and not a run", self.path, "choose another --out")

    def create(self, config: Config) -> None:
        """Start a new run; UserError if the directory is not free."""
        self.check_free()
        with os_errors("cannot make a run here ({})", "choose another --out", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.write_text(self.config, to_json(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; UserError if another training holds it."""
        with os_errors("cannot write here ({})", "choose another --out", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)  # git and some copiers drop a folder that is empty
            try:
                lock = filelock.FileLock(self.path / ".lock").acquire(timeout=0)
            except filelock.Timeout:
                todo = "wait for it, or choose another --out"
                raise UserError("another training is writing here", self.path, todo) from None
        with lock:
            for temporary in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
                temporary.unlink()
            yield
