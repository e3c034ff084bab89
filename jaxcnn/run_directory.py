"""The directory that a training run leaves behind: where its files lie, and who may write there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from jaxcnn import files, weights
from jaxcnn.config import Config, to_json
from jaxcnn.errors import UserError, os_errors


class RunDirectory:
    """What a run leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"  # a line of JSON an epoch
        self.checkpoints = path / "checkpoints"
        self.weights = path / weights.FILE  # the parameters after the last whole epoch
        self.curves = path / "curves.png"

    def check_free(self) -> None:
        """UserError where a new run would meet another run, or files that are not a run's."""
        with os_errors("cannot be used ({})", "choose another --out", self.path):
            if self.config.exists():
                raise UserError("there is a run already", self.path, "go on with --resume, or choose another --out")
            strange = [p for p in self.path.glob("*") if p.name not in (".lock", "checkpoints")]
            if strange or any(self.checkpoints.glob("*")):
                raise UserError("this directory is not empty and not a run", self.path, "choose another --out")

    def create(self, config: Config) -> None:
        """Begin a new run; UserError where something else is there."""
        self.check_free()
        with os_errors("cannot make a run here ({})", "choose another --out", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.write_text(self.config, to_json(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; UserError where another training has it."""
        with os_errors("cannot write here ({})", "choose another --out", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock = filelock.FileLock(self.path / ".lock").acquire(timeout=0)
            except filelock.Timeout:
                todo = "wait for it, or choose another --out"
                raise UserError("another training is writing here", self.path, todo) from None
        with lock:
            for left in self.path.rglob(".*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
            yield
