"""The official forms of CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html): two archives and their folders."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.progress import progress

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
LARGEST_IMAGE = 3600  # bytes in a batch: a python one takes 3,098 for an image and some of its own, a binary one 3,073

# Name, sha256 and bytes of each archive. The binary one comes first, since it needs no pickle.
ARCHIVES = {
    "cifar-10-binary.tar.gz": ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171),
    "cifar-10-python.tar.gz": ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170_498_071),
}
OTHER_SOURCES = "use a copy (--data-dir, prepare_data.py --from), a mirror ($JAXCNN_CIFAR10_MIRROR) or --dataset digits"
GET_ANOTHER_COPY = "get another copy, or run scripts/prepare_data.py without --from to download one"


def dataset(images: UInt8[np.ndarray, "n 32 32 3"], labels: UInt8[np.ndarray, "n"]) -> Dataset:
    """Return CIFAR-10 from all its images in the order of the official batches, those for training first."""
    n = 5 * PER_BATCH
    train, test = Split("train", images[:n], labels[:n]), Split("test", images[n:], labels[n:])
    return Dataset(name="cifar10", class_names=CLASS_NAMES, train=train, test=test)


def read_folder(folder: Path) -> Dataset:
    """Read the six batches of an extracted archive, python or binary."""
    suffix = ".bin" if any(folder.glob("*_batch*.bin")) else ""
    with ExitStack() as opened:
        paths = [path for name in BATCHES if (path := folder / (name + suffix)).is_file()]
        return _assemble(((path.name, opened.enter_context(path.open("rb"))) for path in paths), folder)


def read_archive(path: Path, allow_modified: bool = False) -> Dataset:
    """Read an archive's six batches. Raise UserError if it is damaged or, unless `allow_modified`, not official."""
    check(path, allow_modified)
    try:
        with gzip.open(path) as file:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                data = _assemble(_members(archive), path)
            while file.read(1 << 20):  # gzip checks its checksum at the end of the stream
                pass
            return data
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"truncated or damaged archive ({error})", path, GET_ANOTHER_COPY) from error


def check(path: Path, allow_modified: bool = False) -> None:
    """Raise UserError if a file is not an official archive or, with `allow_modified`, not a gzip file."""
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not head.startswith(b"\x1f\x8b"):
        page = b"<html" in head.lower() or b"<!doctype" in head.lower()
        raise UserError("an HTML page, not an archive" if page else "not a .tar.gz archive", path, GET_ANOTHER_COPY)
    if not allow_modified and digest not in [sha256 for sha256, _ in ARCHIVES.values()]:
        size, sizes = path.stat().st_size, " or ".join(f"{size:,}" for _, size in ARCHIVES.values())
        what = f"not an official CIFAR-10 archive (sha256 {digest[:12]}..., {size:,} bytes instead of {sizes})"
        todo = f"{GET_ANOTHER_COPY}, or if you trust it: prepare_data.py --from it --allow-modified"
        raise UserError(what, path, todo)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the batches without unpacking them to disk, where a member's name could lead outside a folder."""
    for member in archive:
        # A few hundred kilobytes of gzip can expand to any size.
        if member.offset_data + member.size > 12 * LARGEST_IMAGE * PER_BATCH:
            raise tarfile.ReadError("far larger than CIFAR-10")
        name = Path(member.name).name
        if name.removesuffix(".bin") in BATCHES and member.isreg() and (file := archive.extractfile(member)):
            yield name, file


def _assemble(files: Iterable[tuple[str, IO[bytes]]], where: Path) -> Dataset:
    images = np.empty((len(BATCHES), PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty((len(BATCHES), PER_BATCH), np.uint8)
    missing = set(BATCHES)
    with progress(f"reading {where.name}", len(BATCHES), "batches") as update:
        for name, file in files:
            batch = BATCHES.index(name.removesuffix(".bin"))
            pixels, labels[batch] = _parse(file.read(LARGEST_IMAGE * PER_BATCH + 1), where / name)
            images[batch] = pixels.reshape(PER_BATCH, 3, 32, 32).transpose(0, 2, 3, 1)
            missing.discard(BATCHES[batch])
            update(1)
    if missing:
        raise UserError(f"batch missing: {', '.join(sorted(missing))}", where, GET_ANOTHER_COPY)
    return dataset(images.reshape(-1, 32, 32, 3), labels.reshape(-1))


def _parse(content: bytes, where: Path) -> tuple[UInt8[np.ndarray, "n 3072"], UInt8[np.ndarray, "n"]]:
    """Return a batch's pixels (an image's red plane, then green, then blue) and its labels."""
    try:
        if where.suffix == ".bin":
            rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
            pixels, labels = rows[:, 1:], rows[:, 0].tolist()
        else:
            batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
            _, shape, dtype, column_major, data = batch[b"data"].state
            if dtype.args[0] != b"u1" or column_major:
                raise ValueError(f"array of {dtype.args[0]!r}")
            pixels, labels = np.frombuffer(data, np.uint8).reshape(shape), list(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"not a CIFAR-10 batch, or cut or damaged ({error!r:.80})", where, GET_ANOTHER_COPY) from error
    if (pixels.shape, len(labels)) != ((PER_BATCH, PIXELS), PER_BATCH):
        what = f"{pixels.shape} with {len(labels):,} labels instead of {PER_BATCH:,} images"
        raise UserError(f"batch of the wrong size ({what})", where, GET_ANOTHER_COPY)
    if unknown := [label for label in labels if type(label) is not int or not 0 <= label < len(CLASS_NAMES)]:
        raise UserError(f"label {unknown[0]!r:.20} is not one of 0 to 9", where, GET_ANOTHER_COPY)
    return pixels, np.array(labels, dtype=np.uint8)


class _Standin:
    """A stand-in for numpy's array and dtype, which keeps their arguments and state and runs nothing."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state


# In Python, since eight bytes (LONG_BINPUT with index 2^28) make the C unpickler allocate 4 GB.
class _BatchUnpickler(pickle._Unpickler):
    """An unpickler of what the official batches hold: strings, numbers, lists, dicts and one array."""

    def find_class(self, module: str, name: str) -> type[_Standin]:
        if (module, name) in [("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")]:
            return _Standin
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
