"""The loop around `train`: epochs, the run directory, checkpoints, progress, signals. All side effects are here."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from jaxcnn import checkpoints, figures, files, sharding, train
from jaxcnn.config import Config
from jaxcnn.data import Dataset, Split
from jaxcnn.model import CNN, Params, parameter_count
from jaxcnn.run_directory import RunDirectory
from jaxcnn.train import Arrays, TrainState
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
    mesh: Mesh
    data: Arrays
    test: Arrays
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


def on_device(split: Split) -> Arrays:
    """A split as JAX arrays."""
    return Arrays(jnp.asarray(split.images), jnp.asarray(split.labels))


def make_trainer(config: Config, dataset: Dataset, mesh: Mesh) -> Trainer:
    """Put the training data on the devices and compile the step."""
    data = sharding.replicate(on_device(dataset.train), mesh)
    test = sharding.replicate(on_device(dataset.test), mesh)
    model = train.network(config, len(dataset.class_names))
    optimizer = train.sgd(config.learning_rate, config.momentum)
    seed = sharding.replicate(jnp.uint32(config.seed), mesh)
    return Trainer(config, model, optimizer, mesh, data, test, seed)


def fit(
    config: Config,
    dataset: Dataset,
    out: Path,
    mesh: Mesh,
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
    trainer = make_trainer(config, dataset, mesh)
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
    say(f"{parameter_count(state.params):,} parameters, {trainer.per_epoch:,} steps an epoch")
    if len(history) >= config.epochs:
        say(f"already trained for {len(history)} epochs; --epochs {len(history) + 1} or more goes on")
        return history
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
    progress = Progress(epoch + 1, trainer.config.epochs, len(trainer.data.images), trainer.images_done(epoch, step))
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
