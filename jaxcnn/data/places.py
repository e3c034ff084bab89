"""Files in their usual places: some levels down in a folder, or in archives, which are unpacked only in memory."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxcnn import kinds
from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.folder import is_hidden
from jaxcnn.errors import UserError

DEPTH = 6  # levels of folders: a data set at most four down, and two of its own, train/airplane
NESTED = 3  # archives in archives
FACTOR = 20  # an archive that expands to more than this times its size does not hold pictures
HEAD = 512  # bytes
COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}

File = Path | bytes  # on the disk, or unpacked


class Tree(NamedTuple):
    """Files by their names below a folder or in an archive."""

    where: Path
    files: dict[str, File]

    def heads(self) -> Iterator[tuple[str, bytes]]:
        """Yield the names and first bytes of the files that are large enough to be a part of CIFAR-10."""
        for name, file in self.files.items():
            if not name.lower().endswith((".png", ".jpg", ".jpeg")) and size(file) >= 100 * official.PER_BATCH:
                yield name, head(file)


class Found(NamedTuple):
    """What may be CIFAR-10 in a tree: its folder, its files, how to read them, and what it lacks."""

    folder: str
    names: list[str]
    read: Callable[[], Dataset]
    lacks: str = ""


def size(file: File) -> int:
    """Count the bytes of a file."""
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def head(file: File) -> bytes:
    """Return the first bytes of a file."""
    return content(file, HEAD) if isinstance(file, Path) else file[:HEAD]


def content(file: File, most: int = -1) -> bytes:
    """Return the bytes of a file, no more than `most` if it is on the disk."""
    if isinstance(file, bytes):
        return file
    with file.open("rb") as opened:
        return opened.read(most)


def listed(folder: Path) -> Tree:
    """List the files of a folder and of those below, but no hidden ones."""
    files: dict[str, File] = {}
    next(folder.iterdir(), None)  # a folder that may not be read is an error, one below it is not
    for where, folders, names in os.walk(folder, followlinks=True):
        inside = Path(where).relative_to(folder)
        folders[:] = [] if len(inside.parts) == DEPTH else [name for name in folders if not is_hidden(name)]
        paths = [Path(where, name) for name in names if not is_hidden(name)]
        files |= {(inside / path.name).as_posix(): path for path in paths if path.is_file()}  # no pipe, no broken link
    return Tree(folder, files)


def is_archive(start: bytes) -> bool:
    """Tell by its first bytes if a file is a tar archive, compressed or not, or a zip archive."""
    return start.startswith((*COMPRESSED, b"PK\x03\x04")) or start[257:262] == b"ustar"


def unpacked(path: Path) -> Tree:
    """Read the files of an archive, and of archives in it. Raise UserError if it is damaged or absurdly large."""
    with path.open("rb") as file:
        try:
            left = [min(max(FACTOR * size(path), 1 << 20), 14 * official.LARGEST_IMAGE * official.PER_BATCH)]
            return Tree(path, dict(_members(file, left, NESTED)))
        except _TooLargeError as error:
            raise UserError("unpacked, far larger than CIFAR-10", path, official.GET_ANOTHER_COPY) from error
        except RuntimeError as error:  # zipfile's
            raise UserError("an archive with a password, or of an unknown compression", path, kinds.UNPACK) from error
        except Exception as error:  # damaged bytes can raise anything
            raise UserError(
                f"cut or damaged archive of {size(path):,} bytes", path, official.GET_ANOTHER_COPY
            ) from error


class _TooLargeError(tarfile.TarError):
    """The archive expands too far: a few hundred kilobytes can expand to any size."""


class _Limited:
    """A stream that raises once more than what is left has been read from it and others together."""

    def __init__(self, file: Any, left: list[int]) -> None:
        self.file, self.left = file, left

    def read(self, count: int = -1) -> bytes:
        chunk = self.file.read(self.left[0] + 1 if count < 0 else min(count, self.left[0] + 1))
        self.left[0] -= len(chunk)
        if self.left[0] < 0:
            raise _TooLargeError
        return chunk


def _members(file: io.BufferedIOBase, left: list[int], nested: int) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of an archive's files. Links are not followed, and nothing is written."""
    start = file.read(HEAD)
    file.seek(0)
    for name, unfolded in (_zipped if start.startswith(b"PK") else _tarred)(file, start, left):
        parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
        name = "/".join(parts)
        if any(map(is_hidden, parts)):
            continue
        if nested and is_archive(unfolded[:HEAD]):
            inner = _members(io.BytesIO(unfolded), left, nested - 1)
            yield from ((f"{name}/{inside}", file) for inside, file in inner)
        else:
            yield name, unfolded


def _zipped(file: io.BufferedIOBase, start: bytes, left: list[int]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as member:
                    yield info.filename, _Limited(member, left).read()


def _tarred(file: io.BufferedIOBase, start: bytes, left: list[int]) -> Iterator[tuple[str, bytes]]:
    opened = next((opened for magic, opened in COMPRESSED.items() if start.startswith(magic)), None)
    stream: Any = _Limited(opened(file) if opened else file, left)
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isreg() and not member.issparse() and (unfolded := archive.extractfile(member)):
                yield member.name, unfolded.read()
    while stream.read(1 << 20):  # the compressed stream's own checksum is at its end
        pass
