"""The loop around `train`: epochs, the run directory, checkpoints, progress, signals. All side effects are here."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxcnn import checkpoints, figures, files, sharding, train
from jaxcnn.config import Config
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from jaxcnn.model import CNN, Params, parameter_count
from jaxcnn.progress import progress
from jaxcnn.run_directory import RunDirectory
from jaxcnn.train import Arrays, TrainState
from jaxcnn.weights import Weights, save_weights

TICK_SECONDS = 0.5  # between two looks at the clock and the signals: a step is never longer to wait for than that

Metrics = dict[str, float]
METRICS = {"epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}  # what `curves` draws


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
        os.write(sys.stderr.fileno(), b"\nstopping after this step, and saving; Ctrl-C again stops at once\n")

    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set a handler
    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield lambda: came[0] if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def memory_running_out(batch_size: int) -> Iterator[None]:
    """A UserError in place of a device's failure. XLA names memory as the cause on a GPU, not always on a CPU."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as problem:
        if jax.process_count() > 1 and "RESOURCE_EXHAUSTED" not in str(problem):
            raise  # most likely another process ended: `sharding.joined` says so
        why = str(problem).partition("\n")[0] or "no memory left"
        todo = "if memory ran out, train anew with a smaller --batch-size"
        raise UserError(f"the device failed ({why:.200})", f"a step of {batch_size} images", todo) from problem


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
    def batch_size(self) -> int:
        """Images a step: never more than there are, but for what the devices want to be even."""
        devices = self.mesh.size
        return min(self.config.batch_size, -(-len(self.data.images) // devices) * devices)

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return train.steps_per_epoch(len(self.data.images), self.batch_size)

    def steps(self, state: TrainState, count: int) -> TrainState:
        """`train_steps`, waited for."""
        state = train.train_steps(
            self.model, self.optimizer, state, self.data, self.seed, np.int32(count),
            batch_size=self.batch_size, sharding=sharding.divided(self.mesh),
        )  # fmt: skip
        return jax.block_until_ready(state)

    def images_done(self, number: int, step: int) -> int:
        """Images of epoch `number`, from 1, after `step` steps in all."""
        return min((step - (number - 1) * self.per_epoch) * self.batch_size, len(self.data.images))


def make_trainer(config: Config, dataset: Dataset, mesh: Mesh) -> Trainer:
    """Put the data on the devices; UserError where another process has other data."""
    splits = dataset.train, dataset.test
    named = zip(("training", "test"), splits, strict=True)
    sharding.check_same(mesh, **{f"{name} {part}": getattr(s, part) for name, s in named for part in Arrays._fields})
    data, test = (Arrays(*sharding.replicate((s.images, s.labels), mesh)) for s in splits)
    model = train.network(config, len(dataset.class_names))
    optimizer = train.sgd(config.learning_rate, config.momentum)
    seed = sharding.replicate(np.uint32(config.seed), mesh)
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

    params: to start a new run from; None draws them. With many processes, process 0's count, and it alone uses `out`.
    checkpoint_seconds: at most this much training is ever lost.
    Interrupted after a signal, the state being saved; Diverged where the loss is not finite; UserError otherwise.
    """
    run = RunDirectory(out)
    trainer = make_trainer(config, dataset, mesh)
    state, seconds = _first_state(trainer, run, params, say)
    say(f"{parameter_count(state.params):,} parameters, {trainer.per_epoch:,} steps an epoch")
    history = _history_until(run, int(state.step), trainer.per_epoch) if sharding.is_first() else {}
    finished = int(state.step) // trainer.per_epoch
    _, written = sharding.agreed(None, finished in history)
    if finished >= config.epochs and written:
        say(f"already trained for {finished} epochs; --epochs {finished + 1} or more goes on")
        return list(history.values())
    with stop_asked() as asked, memory_running_out(trainer.batch_size):
        start = time.monotonic()
        state = trainer.steps(state, 0)
        say(f"compiled in {time.monotonic() - start:.1f} s")
        ended = int(state.step) % trainer.per_epoch == 0
        if ended and written:
            seconds = 0.0  # what the checkpoint says is of the epoch before
        # An end of an epoch without its line: the run ended between the checkpoint and the evaluation.
        epoch = finished if ended and not written else finished + 1
        for number in range(max(epoch, 1), config.epochs + 1):
            state, seconds = _train_epoch(trainer, run, state, seconds, number, asked, checkpoint_seconds)
            history[number] = _evaluate(trainer, state, seconds, number)
            if sharding.is_first():
                _write_epoch(run, state, history, dataset)
            say(_epoch_line(history[number], config.epochs))
            seconds = 0.0
    return list(history.values())


def _first_state(
    trainer: Trainer, run: RunDirectory, params: Params | None, say: Callable[[str], None]
) -> tuple[TrainState, float]:
    """The newest checkpoint's state, or a new run's, which is saved; and the seconds its epoch has taken so far.

    Process 0's state in every process: no other needs to see the run directory.
    """
    state = train.create_state(trainer.model, trainer.optimizer, trainer.config.seed)
    if params is not None:
        state = train.with_params(trainer.optimizer, params)
    known = {"seconds": "0"}
    if sharding.is_first():
        if checkpoints.saved(run.checkpoints):
            state, known = checkpoints.restore_newest(run.checkpoints, state, say)
        else:
            checkpoints.save(run.checkpoints, state, known)
    return sharding.replicate(sharding.from_first(state), trainer.mesh), float(known["seconds"])


def _history_until(run: RunDirectory, step: int, per_epoch: int) -> dict[int, Metrics]:
    """The whole lines of the metrics that lie before `step`, by epoch; the file is left with just these."""
    lines = [line for line in files.read_json_lines(run.metrics) if line.keys() >= METRICS]
    before = [line for line in lines if line["step"] == line["epoch"] * per_epoch <= step]
    history = {int(line["epoch"]): line for line in sorted(before, key=lambda line: line["epoch"])}
    files.write_json_lines(run.metrics, history.values())
    return history


def _train_epoch(
    trainer: Trainer, run: RunDirectory, state: TrainState, seconds: float, number: int,
    asked: Callable[[], int | None], checkpoint_seconds: float,
) -> tuple[TrainState, float]:  # fmt: skip
    """Train to the end of epoch `number`, checkpoints on the way; the state, and the seconds that the epoch took."""
    end = number * trainer.per_epoch
    step, count, saved = int(state.step), 1, time.monotonic()
    title, images = f"epoch {number:2d}/{trainer.config.epochs}", len(trainer.data.images)
    before = trainer.images_done(number, step)
    with progress(title, images, "images", before) as update:
        while step < end:
            start = time.monotonic()
            state = trainer.steps(state, min(count, end - step))
            elapsed = time.monotonic() - start
            seconds, step = seconds + elapsed, int(state.step)
            done = trainer.images_done(number, step)
            loss = float(state.loss_sum) / done
            if not np.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss}")
            update(done - before, f"loss {loss:.4f}")
            before = done
            count = max(1, min(4 * count, round(count * TICK_SECONDS / elapsed)))
            due = step == end or time.monotonic() - saved > checkpoint_seconds
            signum, count, save = sharding.agreed(asked(), count, due)
            if signum or save:
                _save_checkpoint(run, state, seconds)
                saved = time.monotonic()
            if signum:
                raise Interrupted(signum)
    return state, seconds


def _save_checkpoint(run: RunDirectory, state: TrainState, seconds: float) -> None:
    """Save a state that can be gone on from: an update may be infinite before a loss is."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise Diverged(f"the parameters after step {int(state.step)} are not finite")
    if sharding.is_first():
        checkpoints.save(run.checkpoints, state, {"seconds": repr(seconds)})


def _evaluate(trainer: Trainer, state: TrainState, seconds: float, number: int) -> Metrics:
    """The metrics of epoch `number`, all test images classified."""
    images = len(trainer.data.images)
    divided = sharding.divided(trainer.mesh)
    logits = train.predict_logits(trainer.model, state.params, trainer.test.images, sharding=divided)
    test_loss, test_accuracy = train.metrics(logits, trainer.test.labels)
    return {
        "epoch": number,
        "step": int(state.step),
        "train_loss": float(state.loss_sum) / images,
        "train_accuracy": int(state.correct) / images,
        "test_loss": float(test_loss),
        "test_accuracy": float(test_accuracy),
        "learning_rate": trainer.config.learning_rate,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def _write_epoch(run: RunDirectory, state: TrainState, history: dict[int, Metrics], dataset: Dataset) -> None:
    """Write weights, metrics, curves, and mark the best checkpoint."""
    save_weights(run.weights, Weights(state.params, dataset.class_names, dataset.name))
    files.write_json_lines(run.metrics, history.values())
    if max(history, key=lambda number: history[number]["test_accuracy"]) == max(history):
        checkpoints.mark_best(checkpoints.saved(run.checkpoints)[0])
    figures.save(figures.curves(list(history.values()), dataset.name), run.curves)


def _epoch_line(line: Metrics, epochs: int) -> str:
    return (
        f"epoch {line['epoch']:2d}/{epochs}  train loss {line['train_loss']:.4f}  "
        f"test loss {line['test_loss']:.4f}  test accuracy {line['test_accuracy']:7.2%}  "
        f"{line['seconds']:6.1f} s  {line['images_per_second']:.0f} images/s"
    )
