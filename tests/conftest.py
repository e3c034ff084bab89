"""JAX as strict as it goes, on eight virtual CPU devices, before any test imports the package."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ.pop("PYTHONUNBUFFERED", None)  # a user has it not, and it would hide what comes late
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one process compiled, all others of the suite take over
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxcnn-compiled-")
    # An operation that PyTorch's twin is compared in takes 10 to 30 ms to compile, 5 to fetch; there are thousands.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# An addition compiles in 12 ms of processor time for 32. A user's process, `script`, has neither of the flags, and XLA
# ends a process that names one which it does not know.
if version("jaxlib").startswith("0.10.") and "xla_cpu_use_fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

from jaxcnn.config import DEFAULTS, Config
from jaxcnn.data import Dataset, Split
from jaxcnn.recipe import Recipe, recipe_for
from jaxcnn.train import Arrays, create_state

# What started the suite, such as nohup, may ignore signals, and the suite's processes would inherit that.
for signum, usual in (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL):
    if signal.getsignal(signum) == signal.SIG_IGN:
        signal.signal(signum, usual)

ROOT = Path(__file__).parent.parent

# A first example compiles, so it takes as long as it takes; what failed once is printed, not kept in a folder.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


def users_environment() -> dict[str, str]:
    """What a process has that runs as a user's would, but for what is compiled, which it shares."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_")) or "CACHE" in k}


def small_split(name: str, images: int, seed: int) -> Split:
    """Random images with a bright bar at the height of their class, so that a few steps learn something."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, images, dtype=np.uint8)
    pixels = rng.integers(0, 60, (images, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[3 * label : 3 * label + 3] = 250
    return Split(name, pixels, labels)


def small_dataset() -> Dataset:
    """70 training images, so that the last of three batches of 32 holds 6, and 50 test images."""
    names = tuple(f"class {i}" for i in range(10))
    return Dataset("digits", names, small_split("train", 70, 0), small_split("test", 50, 1))


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """The small data set."""
    return small_dataset()


@pytest.fixture(scope="session")
def config() -> Config:
    """The network at a width that compiles and trains in a moment."""
    return dataclasses.replace(DEFAULTS["tutorial"]["digits"], epochs=2, widths=(4, 16))


@pytest.fixture(scope="session")
def recipe(config: Config) -> Recipe:
    """The recipe of most tests: one, so that it is compiled once."""
    return recipe_for(dataclasses.replace(config, learning_rate=0.05))


@pytest.fixture
def training(dataset: Dataset, recipe: Recipe):
    """Recipe, initial state, data on the device."""
    data = Arrays(jax.numpy.asarray(dataset.train.images), jax.numpy.asarray(dataset.train.labels))
    return recipe, create_state(recipe, seed=0), data


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the scripts in a process of its own, as a user would, in an empty directory and an empty home."""

    def run(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in users_environment().items() if not k.startswith(("TFDS_", "PYTEST"))}
        home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home/cache")}
        return subprocess.run(
            [sys.executable, "-W", "error", ROOT / "scripts" / f"{name}.py", *map(str, arguments)],
            cwd=tmp_path, env={**clean, **home, **environment}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def command(tmp_path: Path, monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `script`, but in this process, which has imported all: 20 ms for 1.5 s, to be told of bad usage."""
    from jaxcnn import cli, platform
    from tests.scripts.commands import module

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(platform, "start", lambda _, cpu_devices=1: jax.devices()[:cpu_devices])
        with pytest.raises(SystemExit) as end:
            cli.run(module(name).main)
        return subprocess.CompletedProcess([name], end.value.code, *capsys.readouterr())

    return run


def assert_trees_equal(a, b) -> None:
    """Bit for bit, structure included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
