"""The loop around `train`: epochs, the run directory, checkpoints, progress, signals. All side effects are here."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcnn import checkpoints, figures, files, sharding, train
from jaxcnn.compute import training_pflop
from jaxcnn.config import Config
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from jaxcnn.networks import Variables, parameter_count
from jaxcnn.platform import check_process
from jaxcnn.progress import progress, say
from jaxcnn.recipe import recipe_for
from jaxcnn.run_directory import RunDirectory
from jaxcnn.train import Arrays, TrainState
from jaxcnn.weights import Weights, save_weights

TICK_SECONDS = 2.0  # between two looks at clock and signals; a step of 1,000 images alone takes 1.1 s instead of 0.95

Say = Callable[[str], None]
Metrics = dict[str, float]
History = dict[int, Metrics]  # by epoch
METRICS = {"epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}  # what `curves` draws
LINE = "epoch {epoch:2d}/{epochs}  train loss {train_loss:.4f}  test loss {test_loss:.4f}  " \
       "test accuracy {test_accuracy:7.2%}  {seconds:6.1f} s  {images_per_second:.0f} images/s"  # fmt: skip


@dataclass(eq=False)
class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    signum: int

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name}: saved; the same call goes on"


class Diverged(Exception):
    """The loss is NaN or infinite. The newest checkpoint holds the last good state."""


@contextmanager
def stop_asked() -> Iterator[list[int]]:
    """Yield a list that receives SIGINT, SIGTERM and SIGHUP as they arrive; a second SIGINT stops at once."""
    arrived: list[int] = []

    def note(signum: int, _: object) -> None:
        if arrived and signum == signal.SIGINT:
            raise KeyboardInterrupt
        arrived.append(signum)
        say("\nstopping after this step, and saving; Ctrl-C again stops at once")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that the parent ignores stays ignored: SIGHUP under `nohup`, SIGINT in what a script starts with &.
    signals = [one for name in names if signal.getsignal(one := getattr(signal, name)) != signal.SIG_IGN]
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set a handler
    with ExitStack() as handlers:
        for signum in signals if main else ():
            handlers.callback(signal.signal, signum, signal.signal(signum, note))
        yield arrived


@contextmanager
def memory_running_out(batch_size: int) -> Iterator[None]:
    """Turn a device's failure into a UserError. XLA names memory as the cause on a GPU, not always on a CPU."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as problem:
        if jax.process_count() > 1 and "RESOURCE_EXHAUSTED" not in str(problem):
            raise  # most likely another process ended: `processes.joined` says so
        why = str(problem).partition("\n")[0] or "no memory left"
        todo = "if memory ran out, train another run with a smaller --batch-size"
        raise UserError(f"the device failed ({why:.200})", f"a step of {batch_size} images", todo) from problem


class Trainer:
    """What stays the same from step to step: the recipe, the data on the devices, the compiled program."""

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh) -> None:
        """Put the data on the devices; UserError if another process has other data."""
        check_process()
        self.config, self.dataset, self.mesh, self.batches = config, dataset, mesh, sharding.divided(mesh)
        splits = {"training": dataset.train, "test": dataset.test}
        parts = {f"{name} {part}": getattr(split, part) for name, split in splits.items() for part in Arrays._fields}
        sharding.check_same(mesh, **parts)
        self.data, self.test = (Arrays(*sharding.replicate((s.images, s.labels), mesh)) for s in splits.values())
        # A batch has no more images than there are, except to let the devices divide it evenly.
        self.batch_size = min(config.batch_size, -(-len(dataset.train) // mesh.size) * mesh.size)
        self.per_epoch = train.steps_per_epoch(len(dataset.train), self.batch_size)
        self.recipe = recipe_for(config, len(dataset.class_names), self.batch_size, self.per_epoch)
        self.marks = {"data": dataset.train.mark, "test": dataset.test.mark}
        self.seed = sharding.replicate(np.uint32(config.seed), mesh)
        self.train_steps = train.make_train_steps(self.recipe, self.batch_size, self.batches)

    def steps(self, state: TrainState, count: int) -> TrainState:
        """Take `count` steps and wait for them."""
        return jax.block_until_ready(self.train_steps(state, self.data, self.seed, np.int32(count)))

    def compiled(self, state: TrainState, epochs: range) -> TrainState:
        """Compile the program of each size that the images of these epochs, from 0, have; the state stays as it is."""
        step, first = state.step, {self.recipe.size(epoch): epoch for epoch in reversed(epochs)}
        with progress("compiling", len(first), "programs") as update:
            for epoch in first.values():
                at_start = sharding.replicate(np.uint32(epoch * self.per_epoch), self.mesh)
                state = self.steps(state._replace(step=at_start), 0)
                update(1)
        return state._replace(step=step)

    def images_done(self, number: int, step: int) -> int:
        """Count the images of epoch `number`, from 1, after `step` steps in all."""
        return min((step - (number - 1) * self.per_epoch) * self.batch_size, len(self.dataset.train))


def fit(
    config: Config, dataset: Dataset, out: Path, mesh: Mesh, *,
    variables: Variables | None = None, say: Say = print, checkpoint_seconds: float = 60.0,
) -> list[Metrics]:  # fmt: skip
    """Train to the end, from the newest checkpoint in `out` if there is one; return the metrics of each epoch.

    variables: what a new run starts from; None draws them. Those of process 0 are used, and it alone uses `out`.
    checkpoint_seconds: at most this much training is lost, whatever happens.
    Raise Interrupted after a signal, once the state is saved; Diverged if the loss is not finite; else UserError.
    """
    run, trainer = RunDirectory(out), Trainer(config, dataset, mesh)
    with stop_asked() as asked:  # from here on: Ctrl-C within XLA's compiler would end in a crash
        return _fit(trainer, run, variables, say, checkpoint_seconds, asked)


def _fit(
    trainer: Trainer, run: RunDirectory, variables: Variables | None, say: Say, checkpoint_seconds: float,
    asked: list[int],
) -> list[Metrics]:  # fmt: skip
    config, dataset = trainer.config, trainer.dataset
    state, seconds, history = _start(trainer, run, variables, say)
    compute = training_pflop(trainer.recipe, len(dataset.train), config.epochs)
    steps = f"{trainer.per_epoch:,} steps an epoch"
    say(f"{parameter_count(state.variables):,} parameters, {steps}, {compute:.3g} PFLOP in all")
    # An epoch without its line goes on. It has no steps left if the run ended between its checkpoint and evaluation.
    epoch = max(1, -(-int(state.step) // trainer.per_epoch))
    _, is_written = sharding.agreed(None, epoch in history)
    if is_written:
        epoch, seconds = epoch + 1, 0.0
    if epoch > config.epochs:
        say(f"already trained for {epoch - 1} epochs; --epochs {epoch} or more goes on")
        return list(history.values())
    with memory_running_out(trainer.batch_size):
        start = time.monotonic()
        state = trainer.compiled(state, range(epoch - 1, config.epochs))
        say(f"compiled in {time.monotonic() - start:.1f} s")
        for number in range(epoch, config.epochs + 1):
            state, seconds = _train_epoch(trainer, run, state, seconds, number, asked, checkpoint_seconds)
            _end_epoch(trainer, run, state, seconds, history)
            say(LINE.format(epochs=config.epochs, **history[number]))
            seconds = 0.0
    return list(history.values())


def _start(
    trainer: Trainer, run: RunDirectory, variables: Variables | None, say: Say
) -> tuple[TrainState, float, History]:
    """Restore or make the first state; return it, the seconds that its epoch has taken, and the metrics until then."""
    recipe, seed, metadata, history = trainer.recipe, trainer.config.seed, _metadata(trainer, 0.0), History()
    images = trainer.dataset.train.images
    state = train.with_variables(recipe, variables) if variables else train.create_state(recipe, seed, images)
    if sharding.is_first():  # no other process needs to see the run directory
        if checkpoints.saved(run.checkpoints):
            state, metadata = checkpoints.restore_newest(run.checkpoints, state, say)
            where, todo = trainer.config.data_dir or trainer.dataset.name, "bring those back, or train another run"
            for name, mark in trainer.marks.items():
                if metadata.get(name, mark) != mark:  # checkpoints of earlier versions do not say
                    of = "training" if name == "data" else name
                    raise UserError(f"not the {of} images that the run began with", where, todo)
        elif files.read_json_lines(run.metrics):
            raise UserError(
                "no checkpoint of a run that has metrics", run.checkpoints, "bring them back, or train anew"
            )
        else:
            checkpoints.save(run.checkpoints, state, metadata)
        lines = [line for line in files.read_json_lines(run.metrics) if line.keys() >= METRICS]
        before = [line for line in lines if line["step"] == line["epoch"] * trainer.per_epoch <= int(state.step)]
        history = {int(line["epoch"]): line for line in sorted(before, key=lambda line: line["epoch"])}
        files.write_json_lines(run.metrics, history.values())  # which drops all other lines
    return sharding.replicate(sharding.from_first(state), trainer.mesh), float(metadata["seconds"]), history


def _metadata(trainer: Trainer, seconds: float) -> dict[str, str]:
    return {"seconds": repr(seconds), **trainer.marks}


def _train_epoch(
    trainer: Trainer, run: RunDirectory, state: TrainState, seconds: float, number: int,
    asked: list[int], checkpoint_seconds: float,
) -> tuple[TrainState, float]:  # fmt: skip
    """Train to the end of epoch `number`, saving on the way; return the state and the seconds that the epoch took."""
    end = number * trainer.per_epoch
    step, count, saved = int(state.step), 1, time.monotonic()
    title, done = f"epoch {number:2d}/{trainer.config.epochs}", trainer.images_done(number, step)
    with progress(title, len(trainer.dataset.train), "images", done) as update:
        while step < end:
            start = time.monotonic()
            state = trainer.steps(state, min(count, end - step))
            elapsed = time.monotonic() - start
            seconds, step = seconds + elapsed, int(state.step)
            before, done = done, trainer.images_done(number, step)
            loss = float(state.loss_sum) / done
            if not np.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss}")
            update(done - before, f"loss {loss:.4f}")
            count = max(1, min(4 * count, round(count * TICK_SECONDS / elapsed)))
            due = step == end or time.monotonic() - saved > checkpoint_seconds
            signum, count, save = sharding.agreed(asked[0] if asked else None, count, due)
            if signum or save:
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)):
                    raise Diverged(f"the parameters after step {step} are not finite")  # nor would be any later loss
                if sharding.is_first():
                    checkpoints.save(run.checkpoints, state, _metadata(trainer, seconds))
                saved = time.monotonic()
            if signum:
                raise Interrupted(signum)
    return state, seconds


def _end_epoch(trainer: Trainer, run: RunDirectory, state: TrainState, seconds: float, history: History) -> None:
    """Classify all test images, and write the epoch's metrics, weights and curves; mark the best checkpoint."""
    network, dataset, images = trainer.recipe.network, trainer.dataset, len(trainer.dataset.train)
    number = int(state.step) // trainer.per_epoch
    logits = train.predict_logits(network, state.variables, trainer.test.images, sharding=trainer.batches)
    test_loss, test_accuracy = train.metrics(logits, trainer.test.labels)
    history[number] = {
        "epoch": number, "step": int(state.step),
        "train_loss": float(state.loss_sum) / images, "train_accuracy": int(state.correct) / images,
        "test_loss": float(test_loss), "test_accuracy": float(test_accuracy),
        "learning_rate": float(trainer.recipe.schedule(int(state.step) - 1)),
        "pflop": training_pflop(trainer.recipe, images, number),
        "seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1),
    }  # fmt: skip
    if sharding.is_first():
        known = (dataset.class_names, dataset.name, trainer.marks["data"])
        save_weights(run.weights, Weights(network, state.variables, *known))
        files.write_json_lines(run.metrics, history.values())
        if number == max(history, key=lambda epoch: history[epoch]["test_accuracy"]):
            checkpoints.mark_best(checkpoints.saved(run.checkpoints)[0])
        figures.save(figures.curves(list(history.values()), dataset.name), run.curves)
