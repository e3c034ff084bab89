"""Write files whole or not at all, and safetensors files with a checksum."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike

from jaxcnn import kinds
from jaxcnn.errors import UserError, os_errors

NamedArrays = dict[str, np.ndarray]


@contextmanager
def written_whole(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` once the block has written it.

    check: reads the temporary file back from the disk before it is renamed, and raises if it is not what it should be.
    Raise UserError if the directory cannot be written or the disk is full. After any error, `path` is unchanged.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors("cannot write ({})", "free space or choose another directory", path):
        try:
            yield temporary
            _sync(temporary)
            if check:
                check(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Sync a file to the disk, and drop it from the page cache: the next read is from the disk."""
    handle = os.open(path, os.O_RDWR)  # Windows syncs nothing that is open for reading
    try:
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # no such call on this file system
            raise
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Sync a folder's names to the disk, where that is possible: not on Windows, nor on many network file systems."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_folder(path: Path | None) -> None:
    """Raise UserError if no file can be written at `path`, before minutes of work rather than afterwards."""
    if path and path.exists() and not path.is_file():
        raise UserError("a folder or a device, not a file", path, "name a file")
    if path and path.name == "-":
        raise UserError("standard output cannot be written to", path, "name a file")
    if path and not os.access(path.absolute().parent, os.W_OK):
        raise UserError("no such folder, or not a writable one", path.parent, "make it, or name another")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flat_names(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by their paths, such as `conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 of the arrays' names, types, shapes and contents, and of the metadata except a SHA-256."""
    others = {name: text for name, text in (metadata or {}).items() if name != "sha256"}
    sha = hashlib.sha256(json.dumps(others, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        sha.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return sha.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, ArrayLike], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, and read it back from the disk before it takes its name."""
    # safetensors' numpy writer silently corrupts arrays that are not C-contiguous (its issue 826).
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    expected = digest(contiguous, metadata)

    def check(temporary: Path) -> None:
        if digest(*read_arrays(temporary)) != expected:
            raise UserError("what reads back is not what was written", path, "check the disk, then try again")

    with written_whole(path, check) as temporary:
        temporary.write_bytes(safetensors.numpy.save(contiguous, {**metadata, "sha256": expected}))


def read_arrays(path: Path) -> tuple[NamedArrays, dict[str, str]]:
    """Return a safetensors file's arrays and metadata. Raise UserError if it is damaged or fails its checksum."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            for name, kind in ((name, file.get_slice(name).get_dtype()) for name in file.keys()):  # noqa: SIM118
                if re.match(r"F[468](_|$)", kind):
                    raise UserError(f"{name}: numbers of type {kind}", path, "save them as float16 or float32")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError, KeyError) as problem:
        raise _unreadable(path) from problem
    ours = metadata.get("format", "").startswith("jaxcnn-")  # another program's may be of anything
    if ours and metadata.pop("sha256", None) != digest(arrays, metadata):
        raise UserError("damaged: its contents do not match its checksum", path, "use another copy")
    return arrays, metadata


def _unreadable(path: Path) -> UserError:
    """Make the error for what is not a readable safetensors file: what it is, or where it ends too early."""
    with os_errors("cannot be read ({})", "name another file", path):
        with path.open("rb") as file:
            header, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        what = "its header is cut or damaged" if header + 8 > size else "it is cut, or its header is damaged"
        fallback = UserError(f"not a readable safetensors file: {what}", path, "use another copy, or write it again")
        return fallback if kinds.kind_of(path) == kinds.ARRAYS else kinds.unlike(path, "a safetensors file", fallback)


def write_json_lines(path: Path, lines: Iterable[Mapping[str, float]]) -> None:
    """Write a JSON-lines file, whole or not at all."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_json_lines(path: Path) -> list[dict[str, float]]:
    """Return the lines that are objects of numbers, and skip others, such as the half line that a killed run leaves."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and all(isinstance(v, int | float) and abs(v) < 1e300 for v in line.values()):
                lines.append(line)
    return lines
