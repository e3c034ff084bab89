"""Training states on disk: one checked safetensors file a checkpoint, the newest two and the best kept."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from jaxcnn import files
from jaxcnn.errors import UserError
from jaxcnn.train import TrainState

FORMAT = "jaxcnn-checkpoint/1"  # not orbax: it needs absolute paths (orbax#646) and the devices that wrote a checkpoint


def save(directory: Path, state: TrainState, metadata: dict[str, str]) -> None:
    """Write the state as `step_<step>.safetensors`, and drop all but the newest two."""
    path = directory / f"step_{int(state.step):09d}.safetensors"
    files.save_arrays(path, files.flat_names(state), {**metadata, "format": FORMAT})
    for old in saved(directory)[2:]:
        old.unlink(missing_ok=True)


def mark_best(path: Path) -> None:
    """Copy a checkpoint to `best.safetensors`."""
    with files.written_whole(path.with_name("best.safetensors")) as temporary:
        shutil.copyfile(path, temporary)  # not a link: damage to one leaves the other intact


def saved(directory: Path) -> list[Path]:
    """List the checkpoints, the newest first."""
    return sorted(directory.glob("step_*.safetensors"), reverse=True)


def restore(path: Path, like: TrainState) -> tuple[TrainState, dict[str, str]]:
    """Read a checkpoint with the structure, shapes and types of `like`; return the state and its metadata."""
    arrays, metadata = files.read_arrays(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"a checkpoint of format {metadata.get('format')!r}, not {FORMAT}", path, "train another run")
    expected = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in files.flat_names(like).items()}
    for name, kind in expected.items():
        found = f"{arrays[name].dtype}{list(arrays[name].shape)}" if name in arrays else "nothing"
        if found != kind:
            raise UserError(f"{name} should be {kind}, is {found}", path, "resume with the same network")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected]), metadata


def restore_newest(directory: Path, like: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, str]]:
    """Read the newest checkpoint that can be read. Warn of each damaged one; raise UserError if none is left."""
    for path in saved(directory):
        try:
            return restore(path, like)
        except UserError as problem:
            warn(f"{problem}; going back to the checkpoint before it")
    raise UserError("no checkpoint that can be read", directory, "train with another --out")
