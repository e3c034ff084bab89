"""What is kept on disk: the decoded arrays beside a data set, the lock of whoever is at work, the room they need."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.progress import say

FORMAT = 1  # to be raised with any change of what is kept


def lock(path: Path) -> contextlib.AbstractContextManager[object]:
    """A lock file, held; whoever comes second is told and waits. The system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    holder = FileLock(path)
    try:
        return holder.acquire(timeout=0)
    except Timeout:
        say(f"another process is at work in {path.parent}: waiting for it")
        return holder.acquire()


def require_space(folder: Path, megabytes: int) -> None:
    """UserError where the disk of a folder has less free space than that."""
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise UserError(f"{free:,} MB free on the disk, {megabytes:,} MB needed", folder, "make room or choose another")


def user_cache() -> Path:
    """The user's cache folder of this project, which may not be there yet."""
    import platformdirs

    return platformdirs.user_cache_path("jaxcnn", appauthor=False)


def cached(source: Path | str, build: Callable[[], Dataset]) -> Dataset:
    """The data set that `build` makes of `source`, from the arrays of an earlier call where `source` is as it was.

    They lie beside a file or folder, else (an address, a folder that cannot be written) in the user's cache folder,
    under a mark: the address, or the files' names, sizes and times.
    """
    mark = f"{FORMAT} {source}"
    places = [user_cache() / f"cifar10-{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.npz"]
    if isinstance(source, Path):
        files = [source] if source.is_file() else sorted(file for file in source.iterdir() if file.is_file())
        mark = f"{FORMAT} {[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]}"
        places.insert(0, beside(source))
    for place in places:
        if data := _read(place, mark):
            return data
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            require_space(place.parent, megabytes=200)
            tempfile.TemporaryFile(dir=place.parent).close()  # where a lock file is left, it tells nothing
            held = lock(place.with_suffix(".lock"))
        except (OSError, UserError) as error:
            say(f"decoded images are not kept there: {error}")
            continue
        with held:
            if data := _read(place, mark):  # whoever held the lock has done the work
                return data
            data = build()
            save(place, mark, data)
            return data
    return build()


def beside(source: Path) -> Path:
    """Where the decoded arrays of a data set's file or folder are kept if its own folder can be written."""
    return source.parent / f".{source.name}.jaxcnn.npz"


def save(place: Path, mark: str, data: Dataset) -> None:
    """Write arrays and mark in one step; a full disk is told and otherwise does not matter."""
    arrays = {f"{s.name}_{part}": getattr(s, part) for s in (data.train, data.test) for part in ("images", "labels")}
    part = place.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, mark=np.array(mark), **arrays)
            os.fsync(file.fileno())
        part.replace(place)
    except OSError as error:
        part.unlink(missing_ok=True)
        say(f"decoded images cannot be kept ({error.strerror or error}): {place}")


def _read(place: Path, mark: str) -> Dataset | None:
    """The arrays kept under this mark. A zip archive checks each member's CRC-32, so that a flipped bit is noticed."""
    if not place.is_file():
        return None
    try:
        with place.open("rb") as file, np.load(file) as kept:  # np.load closes no damaged file that it opened
            if str(kept["mark"]) != mark:
                say(f"decoded images are older than the data set, and are made anew: {place}")
                return None
            train, test = (Split(name, kept[f"{name}_images"], kept[f"{name}_labels"]) for name in ("train", "test"))
        for split, n in (train, 5 * official.PER_BATCH), (test, official.PER_BATCH):
            if (split.images.shape, split.labels.shape) != ((n, 32, 32, 3), (n,)) or split.images.dtype != np.uint8:
                raise ValueError("not what was kept there")
        return Dataset("cifar10", official.CLASS_NAMES, train, test)
    except Exception as error:  # damaged bytes can raise anything, and cost no more than decoding again
        say(f"decoded images are damaged ({error!r:.60}), and are made anew: {place}")
        return None
