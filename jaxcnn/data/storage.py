"""What data sets need from the disk: a cache of decoded arrays, locks, and free space."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.paths import user_cache
from jaxcnn.progress import say

FORMAT = 3  # of the cache: raise it with every change


def lock(path: Path) -> contextlib.AbstractContextManager[object]:
    """Acquire a lock file, if need be after a message and a wait. The system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    file_lock = FileLock(path)
    try:
        return file_lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is at work in {path.parent}: waiting for it")
        return file_lock.acquire()


def require_space(folder: Path, megabytes: int) -> None:
    """Raise UserError if the disk of a folder has less free space than `megabytes`."""
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise UserError(f"{free:,} MB free on the disk, {megabytes:,} MB needed", folder, "make room or choose another")


def cached(name: str, source: Path | str, build: Callable[[], Dataset], files: Iterable[Path] | None = None) -> Dataset:
    """Return the data set `name` that `build` makes from `source`, from the cache if `source` has not changed since.

    files: all that it is made of; by default the source itself, or the files in it.
    The cache of a file or folder is beside it. The cache of an address, or of a folder whose parent cannot be written,
    is in the user's cache folder. It is valid for one mark: the address, or the files' names, sizes and times.
    """
    mark = f"{FORMAT} {name} {source}"
    places = [user_cache() / f"{name}-{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.npz"]
    if isinstance(source, Path):
        if files is None:
            files = [source] if source.is_file() else sorted(filter(Path.is_file, source.iterdir()))
        mark = f"{FORMAT} {name} {_mark(source, files)}"
        places.insert(0, beside(source))
    for place in places:
        if data := _read(place, mark, name, tell=False):
            return data
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            require_space(place.parent, megabytes=200)
            tempfile.TemporaryFile(dir=place.parent).close()  # an old lock file opens even in a read-only folder
            locked = lock(place.with_suffix(".lock"))
        except (OSError, UserError) as error:
            say(f"decoded images are not cached there: {error}")
            continue
        with locked:
            data = _read(place, mark, name)  # another process may have written it in the meantime
            if not data:
                save(place, mark, data := build())
            return data
    return build()


def _mark(source: Path, files: Iterable[Path]) -> str:
    """Return text that changes with a file's name, size or times: programs set one time, the system the other."""
    stats = [(os.path.relpath(file, source), file.stat()) for file in files]
    text = repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()


def beside(source: Path) -> Path:
    """Return the place of the cache beside a data set's file or folder."""
    return source.parent / f".{source.name}.jaxcnn.npz"


def save(place: Path, mark: str, data: Dataset) -> None:
    """Write arrays and mark, whole or not at all. A full disk is reported and does no harm."""
    arrays = {f"{s.name}_{kind}": getattr(s, kind) for s in (data.train, data.test) for kind in ("images", "labels")}
    arrays |= {f"{s.name}_files": np.array(s.files, dtype=str) for s in (data.train, data.test)}
    part = place.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, mark=np.array(mark), class_names=np.array(data.class_names), **arrays)
            os.fsync(file.fileno())
        part.replace(place)
    except OSError as error:
        part.unlink(missing_ok=True)
        say(f"decoded images cannot be cached ({error.strerror or error}): {place}")


def _read(place: Path, mark: str, name: str, tell: bool = True) -> Dataset | None:
    """Return the cached data set if it has this mark. A flipped bit fails the CRC-32 that zip archives check.

    tell: whether to say why it is not taken.
    """
    if not place.is_file():
        return None
    try:
        with place.open("rb") as file, np.load(file) as stored:  # np.load leaves a damaged file open if it opened it
            if str(stored["mark"]) != mark:
                if tell:
                    say(f"decoded images are older than the data set, which is decoded again: {place}")
                return None
            class_names = tuple(map(str, stored["class_names"]))
            train, test = (
                Split(of, stored[f"{of}_images"], stored[f"{of}_labels"], tuple(map(str, stored[f"{of}_files"])))
                for of in ("train", "test")
            )
        rows = (5 * official.PER_BATCH, official.PER_BATCH) if name == "cifar10" else (len(train), len(test))
        for split, n in zip((train, test), rows, strict=True):
            if (split.images.shape, split.labels.shape) != ((n, 32, 32, 3), (n,)) or split.images.dtype != np.uint8:
                raise ValueError("arrays of another shape or type")
        return Dataset(name, class_names, train, test)
    except Exception as error:  # damaged bytes can raise anything
        if tell:
            say(f"decoded images are damaged ({error!r:.60}), and the data set is decoded again: {place}")
        return None
