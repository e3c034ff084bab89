"""The loop around `train`: epochs, the run directory, checkpoints, progress, signals. All side effects are here."""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxcnn import checkpoints, figures, files, sharding, train
from jaxcnn.config import Config, to_json
from jaxcnn.data import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.model import CNN, Params
from jaxcnn.train import Arrays, TrainState
from jaxcnn.weights import FILE as WEIGHTS
from jaxcnn.weights import Weights, save_weights

TICK_SECONDS = 0.5  # between two looks at the clock and the signals: a step is never longer to wait for than that
LOG_SECONDS = 10.0  # between two lines in a log

Metrics = dict[str, float]


class Interrupted(Exception):
    """A signal asked to stop, and the state was saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Diverged(Exception):
    """The loss is NaN or infinite. The last good state is in the newest checkpoint."""


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
        return self.path / WEIGHTS

    @property
    def curves(self) -> Path:
        """Loss and accuracy over the epochs, a picture."""
        return self.path / "curves.png"

    def exists(self) -> bool:
        """Whether there is a run here."""
        return self.config.exists()

    def create(self, config: Config) -> None:
        """Make the directory of a new run; UserError where something else is there."""
        if self.exists():
            raise UserError("there is a run already", self.path, "go on with --resume, or choose another --out")
        try:
            if self.path.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
                raise UserError("this directory is not empty and not a run", self.path, "choose another --out")
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
                yield
        except filelock.Timeout:
            raise UserError(
                "another training is writing here", self.path, "wait for it, or choose another --out"
            ) from None
        except OSError as problem:
            raise UserError(f"cannot write here ({problem.strerror})", self.path, "choose another --out") from None


FIXED = ("dataset", "batch_size", "precision", "seed", "channels", "hidden", "init", "momentum")


def resumed(config: Config, given: dict[str, Any]) -> Config:
    """A run's configuration with what may change while it goes on; UserError naming what may not."""
    for name in FIXED:
        if name in given and given[name] != getattr(config, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"the run has {name} {getattr(config, name)}, not {given[name]}", flag, "leave it out, or train anew"
            )
    return dataclasses.replace(config, **given)


@contextmanager
def stop_asked() -> Iterator[Callable[[], int | None]]:
    """A function that says which of SIGINT and SIGTERM has come; a second SIGINT stops at once."""
    came: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        if came and signum == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Progress:
    """A bar on a terminal, a line every ten seconds in a log: images a second, time left."""

    def __init__(self, epoch: int, epochs: int, images: int, done: int) -> None:
        self.title = f"epoch {epoch:2d}/{epochs}"
        self.terminal = sys.stderr.isatty()
        bar_format = (
            "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} images, {rate_fmt}, {remaining} left{postfix}"
        )
        self.bar = tqdm(
            total=images, initial=done, desc=self.title, unit=" images", leave=False, disable=not self.terminal,
            bar_format=bar_format, dynamic_ncols=True,
        )  # fmt: skip
        self.images, self.done, self.first = images, done, done
        self.start = self.said = time.monotonic()

    def update(self, done: int, loss: float) -> None:
        """So many images of the epoch are done, at this mean loss."""
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(done - self.done)
        self.done, now = done, time.monotonic()
        if not self.terminal and now - self.said > LOG_SECONDS and done < self.images:
            rate = (done - self.first) / (now - self.start)
            left = (self.images - done) / rate
            print(f"{self.title}  {done}/{self.images} images  loss {loss:.4f}  {rate:.0f} images/s  {left:.0f} s left")
            sys.stdout.flush()
            self.said = now


@dataclass(frozen=True)
class Trainer:
    """What stays the same from step to step: the network, the optimizer, the data on the device."""

    config: Config
    model: CNN
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    data: Arrays
    test: Split
    seed: jax.Array

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return train.steps_per_epoch(len(self.data.images), self.config.batch_size)

    def steps(self, state: TrainState, count: int) -> TrainState:
        """`train_steps`, waited for."""
        state = train.train_steps(
            self.model, self.optimizer, state, self.data, self.seed, jnp.int32(count),
            batch_size=self.config.batch_size, sharding=sharding.divided(self.mesh),
        )  # fmt: skip
        return jax.block_until_ready(state)

    def images_done(self, epoch: int, step: int) -> int:
        """Images of epoch number `epoch` from 0 after `step` steps in all."""
        return min((step - epoch * self.per_epoch) * self.config.batch_size, len(self.data.images))


def make_trainer(config: Config, dataset: Dataset, devices: list[jax.Device]) -> Trainer:
    """Put the training data on the devices and compile the step."""
    mesh = sharding.make_mesh(devices, config.batch_size)
    data = sharding.replicate(Arrays(dataset.train.images, dataset.train.labels), mesh)
    model = train.network(config, len(dataset.class_names))
    optimizer = train.sgd(config.learning_rate, config.momentum)
    seed = sharding.replicate(jnp.uint32(config.seed), mesh)
    return Trainer(config, model, optimizer, mesh, data, dataset.test, seed)


def fit(
    config: Config,
    dataset: Dataset,
    out: Path,
    devices: list[jax.Device],
    *,
    params: Params | None = None,
    say: Callable[[str], None] = print,
    checkpoint_seconds: float = 60.0,
) -> list[Metrics]:
    """Train, or go on with the run in `out`, to the end; the metrics of each epoch.

    params: to start a new run from; None draws them.  checkpoint_seconds: at most this much training is ever lost.
    Interrupted after a signal, the state being saved; Diverged where the loss is not finite; UserError otherwise.
    """
    run = RunDirectory(out)
    trainer = make_trainer(config, dataset, devices)
    initial = train.create_state(trainer.model, trainer.optimizer, config.seed)
    if params is not None:
        initial = train.with_params(trainer.optimizer, params)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    if checkpoints.saved(run.checkpoints):
        state, known = checkpoints.restore_newest(run.checkpoints, initial, say)
    else:
        checkpoints.save(run.checkpoints, initial, {"seconds": "0"})
        state, known = initial, {"seconds": "0"}
    history = files.read_json_lines(run.metrics, lambda line: line["step"] <= int(state.step))
    files.write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in history))
    state = sharding.replicate(state, trainer.mesh)
    seconds = float(known["seconds"])
    with stop_asked() as asked:
        start = time.monotonic()
        state = trainer.steps(state, 0)
        say(f"compiled in {time.monotonic() - start:.1f} s")
        while len(history) < config.epochs:
            state, seconds = _train_epoch(trainer, run, state, seconds, len(history), asked, checkpoint_seconds)
            history.append(_end_epoch(trainer, run, state, seconds, history, dataset, say))
            seconds = 0.0
    return history


def _train_epoch(
    trainer: Trainer, run: RunDirectory, state: TrainState, seconds: float, epoch: int,
    asked: Callable[[], int | None], checkpoint_seconds: float,
) -> tuple[TrainState, float]:  # fmt: skip
    """Train to the end of epoch number `epoch` from 0, checkpoints on the way; the state, and the seconds it took."""
    end = (epoch + 1) * trainer.per_epoch
    step, count, saved = int(state.step), 1, time.monotonic()
    progress = Progress(
        epoch + 1, trainer.config.epochs, len(trainer.data.images), trainer.images_done(epoch, step)
    )
    while step < end:
        start = time.monotonic()
        state = trainer.steps(state, min(count, end - step))
        elapsed = time.monotonic() - start
        seconds, step = seconds + elapsed, int(state.step)
        done = trainer.images_done(epoch, step)
        loss = float(state.loss_sum) / done
        if not np.isfinite(loss):
            raise Diverged(f"the loss of step {step} is {loss}")
        progress.update(done, loss)
        count = max(1, min(4 * count, round(count * TICK_SECONDS / elapsed)))
        if (signum := asked()) or step == end or time.monotonic() - saved > checkpoint_seconds:
            checkpoints.save(run.checkpoints, state, {"seconds": repr(seconds)})
            saved = time.monotonic()
        if signum:
            progress.bar.close()
            raise Interrupted(signum)
    progress.bar.close()
    return state, seconds


def _end_epoch(
    trainer: Trainer, run: RunDirectory, state: TrainState, seconds: float, history: list[Metrics],
    dataset: Dataset, say: Callable[[str], None],
) -> Metrics:  # fmt: skip
    """Evaluate, and write the epoch's metrics, weights and curves; its metrics."""
    images = len(trainer.data.images)
    logits = train.predict_logits(trainer.model, state.params, trainer.test.images)
    test_loss, test_accuracy = train.metrics(logits, trainer.test.labels)
    line: Metrics = {
        "epoch": len(history) + 1,
        "step": int(state.step),
        "train_loss": float(state.loss_sum) / images,
        "train_accuracy": int(state.correct) / images,
        "test_loss": float(test_loss),
        "test_accuracy": float(test_accuracy),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }
    save_weights(run.weights, Weights(state.params, dataset.class_names, dataset.name))
    lines = [*history, line]
    files.write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    if line["test_accuracy"] == max(earlier["test_accuracy"] for earlier in lines):
        checkpoints.mark_best(checkpoints.saved(run.checkpoints)[0])
    figures.save(figures.curves(lines, dataset.name), run.curves)
    say(
        f"epoch {line['epoch']:2d}/{trainer.config.epochs}  train loss {line['train_loss']:.4f}  "
        f"test loss {line['test_loss']:.4f}  test accuracy {line['test_accuracy']:7.2%}  "
        f"{line['seconds']:6.1f} s  {line['images_per_second']:.0f} images/s"
    )
    return line
