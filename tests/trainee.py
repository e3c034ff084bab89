"""A training process to be killed: a narrow network, a checkpoint after every dispatch of one step.

    python -m tests.trainee RUN EPOCHS [FAULT]

FAULT: `fsync:K` kills the process at the K-th fsync, so during a checkpoint; `size:N` limits files to N bytes, as a
full disk does; `vanish` removes the run directory under way; `slow` waits a little at each step, to be killed from
outside; `watch` prints KB in use and open files after every twentieth epoch.
"""

import ctypes
import dataclasses
import gc
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import jax

from jaxcnn import cli, fit
from jaxcnn.config import DEFAULTS
from jaxcnn.run_directory import RunDirectory
from jaxcnn.sharding import make_mesh
from tests.conftest import small_dataset


def inject(fault: str, run: Path) -> None:
    kind, _, number = fault.partition(":")
    if kind == "fsync":
        real, calls = os.fsync, iter(range(1, 10**6))
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == int(number) else real(fd)
    elif kind == "size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
    elif kind in ("vanish", "slow"):
        steps = fit.Trainer.steps

        def slowed(trainer, state, count):
            time.sleep(0.01)
            if kind == "vanish" and int(state.step) == 4:
                shutil.rmtree(run)
            return steps(trainer, state, count)

        fit.Trainer.steps = slowed


def watch(line: str) -> None:
    """Memory of our own that is in use: files' pages come and go.

    Drawn figures are cycles, up to 45 MB of which wait to be collected; and glibc keeps 140 MB that are free.
    """
    epoch = re.match(r"epoch +(\d+)/", line)
    if epoch and int(epoch[1]) % 20 == 0:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        kb = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print("watch", epoch[1], kb[1], len(list(Path("/proc/self/fd").iterdir())))


def main() -> int:
    run, epochs = RunDirectory(Path(sys.argv[1])), int(sys.argv[2])
    config = dataclasses.replace(DEFAULTS["tutorial"]["digits"], epochs=epochs, widths=(2, 4))
    fit.TICK_SECONDS = 0.0
    with run.locked():
        if not run.config.exists():
            run.create(config)
        for fault in sys.argv[3:]:
            inject(fault, run.path)
        mesh = make_mesh(jax.devices(), 1, config.batch_size)
        print("ready", flush=True)
        try:
            say = watch if "watch" in sys.argv else print
            fit.fit(config, small_dataset(), run.path, mesh, checkpoint_seconds=0.0, say=say)
        except fit.Interrupted as stop:
            return 128 + stop.signum
    return 0


if __name__ == "__main__":
    cli.run(main)
