"""A training state on disk: one checked safetensors file a checkpoint, the newest two and the best kept.

Not orbax: its checkpoints want absolute paths (orbax#646) and the devices that wrote them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from jaxcnn import files
from jaxcnn.errors import UserError
from jaxcnn.train import TrainState

FORMAT = "jaxcnn-checkpoint/1"


def save(directory: Path, state: TrainState, metadata: dict[str, str]) -> Path:
    """Write the state as `step_<step>.safetensors`, then drop all but the newest two; its path."""
    path = directory / f"step_{int(state.step):09d}.safetensors"
    files.save_arrays(path, files.flat_names(state), {**metadata, "format": FORMAT})
    for old in saved(directory)[2:]:
        old.unlink(missing_ok=True)
    return path


def mark_best(path: Path) -> None:
    """Keep a checkpoint as `best.safetensors` too."""
    with files.written_whole(path.with_name("best.safetensors")) as temporary:
        shutil.copyfile(path, temporary)  # not a link: what damages one of them leaves the other


def saved(directory: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted(directory.glob("step_*.safetensors"), reverse=True)


def restore(path: Path, like: TrainState) -> tuple[TrainState, dict[str, str]]:
    """The state in a checkpoint, with the structure, shapes and types of `like`; and its metadata."""
    arrays, metadata = files.read_arrays(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"a checkpoint of format {metadata.get('format')!r}, not {FORMAT}", path, "train anew")
    expected = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in files.flat_names(like).items()}
    for name, kind in expected.items():
        found = f"{arrays[name].dtype}{list(arrays[name].shape)}" if name in arrays else "nothing"
        if found != kind:
            raise UserError(f"{name} should be {kind}, is {found}", path, "resume with the same network")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected]), metadata


def restore_newest(directory: Path, like: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, str]]:
    """The newest state that can be read, each damaged one said to `warn`; UserError where there is none."""
    for path in saved(directory):
        try:
            return restore(path, like)
        except UserError as problem:
            warn(f"{problem}; going back to the checkpoint before it")
    raise UserError("no checkpoint that can be read", directory, "train anew with another --out")
