"""Writing that is whole or not at all, and safetensors files that are checked before they count."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike

from jaxcnn.errors import UserError, os_errors

NamedArrays = dict[str, np.ndarray]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; after an error neither it nor a change is left.

    UserError where the directory cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors("cannot write ({})", "free space or choose another directory", path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folder(path: Path | None) -> None:
    """UserError where no file could be written: better said before minutes of work than after them."""
    if path and not os.access(path.absolute().parent, os.W_OK):
        raise UserError("no such folder, or not one to write to", path.parent, "make it, or name another")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flat_names(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths: `conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 of names, types, shapes and contents, and of the metadata."""
    sha = hashlib.sha256(json.dumps(metadata or {}, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        sha.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return sha.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, ArrayLike], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, read it back and compare, and only then let it take its name.

    safetensors' numpy writer silently corrupts arrays that are not C-contiguous (its issue 826): all are made so first.
    """
    whole = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    expected = digest(whole, metadata)
    with written_whole(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(whole, {**metadata, "sha256": expected}))
        if digest(*read_arrays(temporary)) != expected:
            raise UserError("what was written reads back otherwise", path, "check the disk, then try again")


def read_arrays(path: Path) -> tuple[NamedArrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file; UserError where it is damaged or not as its checksum says."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError) as problem:
        todo = "name another file, or write this one anew"
        raise UserError(f"not a readable safetensors file ({problem})", path, todo) from None
    expected = metadata.pop("sha256", None)
    ours = metadata.get("format", "").startswith("jaxcnn-")  # such a file has a checksum, or has lost it to damage
    if (ours or expected) and expected != digest(arrays, metadata):
        raise UserError("damaged: its contents do not match its checksum", path, "use another copy")
    return arrays, metadata


def write_json_lines(path: Path, lines: Iterable[Mapping[str, float]]) -> None:
    """Write a whole JSON-lines file or none."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_json_lines(path: Path) -> list[dict[str, float]]:
    """The lines that are objects of numbers, not the half line that a killed run leaves, nor anything else."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(isinstance(v, int | float) and abs(v) < 1e300 for v in line.values()):
            lines.append(line)
    return lines
