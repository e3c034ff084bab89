"""The directory that a training run leaves behind: where its files lie, and who may write there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from jaxcnn import files
from jaxcnn.config import Config, to_json
from jaxcnn.errors import UserError


@dataclass(frozen=True)
class RunDirectory:
    """What a run leaves behind."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A line of JSON an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training states."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The parameters after the last whole epoch."""
        return self.path / "weights.safetensors"

    @property
    def curves(self) -> Path:
        """Loss and accuracy over the epochs, a picture."""
        return self.path / "curves.png"

    def exists(self) -> bool:
        """Whether there is a run here."""
        return self.config.exists()

    def check_free(self) -> None:
        """UserError where a new run would meet another run, or files that are not a run's."""
        if self.exists():
            raise UserError("there is a run already", self.path, "go on with --resume, or choose another --out")
        try:
            if self.path.exists() and any(p.name not in (".lock", "checkpoints") for p in self.path.iterdir()):
                raise UserError("this directory is not empty and not a run", self.path, "choose another --out")
        except OSError as problem:
            raise UserError(f"cannot be used ({problem.strerror})", self.path, "choose another --out") from None

    def create(self, config: Config) -> None:
        """Make the directory of a new run; UserError where something else is there."""
        self.check_free()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"cannot make a run here ({problem.strerror})", self.path, "choose another --out") from None
        files.write_text(self.config, to_json(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; UserError where another training has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.path / ".lock", timeout=0):
                for left in self.path.rglob(".*.tmp"):  # by a process that was killed while it wrote
                    left.unlink()
                yield
        except filelock.Timeout:
            raise UserError(
                "another training is writing here", self.path, "wait for it, or choose another --out"
            ) from None
        except OSError as problem:
            raise UserError(f"cannot write here ({problem.strerror})", self.path, "choose another --out") from None
