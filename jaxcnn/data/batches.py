"""CIFAR-10's six batches, python, binary or MATLAB: in the official archives, or wherever they were taken."""

import io
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxcnn import kinds, pickles
from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.places import File, Found, Tree, content, head, size
from jaxcnn.errors import UserError
from jaxcnn.progress import progress

PIXELS = 3 * 32 * 32
SUFFIXES = ("", ".bin", ".mat")  # of the originals; others may be of a backup
NAME = re.compile(r"(?:data_batch_([1-5])|test_batch)(?:\.\w+)?", re.IGNORECASE)
NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 9: "<f8", 12: "<i8", 13: "<u8"}  # MATLAB's
LABEL = re.compile(rb"training batch ([1-5]) of 5|testing batch 1 of 1")


def find(tree: Tree) -> Iterator[Found]:
    """Find the batches of each folder and form, by their names or by the label in a python batch."""
    matches: dict[str, Any] = {name: NAME.fullmatch(name.rpartition("/")[2]) for name in tree.files}
    matches = {name: match for name, match in matches.items() if match}
    matches |= {name: match for name, start in tree.heads() if name not in matches and (match := LABEL.search(start))}
    sets: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in sorted(matches, key=lambda name: (PurePosixPath(name).suffix not in SUFFIXES, name)):
        path, match = PurePosixPath(name), matches[name]
        sets[str(path.parent), _form(tree.files[name], path.suffix)].setdefault(int(match[1] or 6) - 1, name)
    for (folder, form), names in sets.items():
        missing = [batch for i, batch in enumerate(official.BATCHES) if i not in names]
        lacks = f"batch missing: {', '.join(missing)}" if missing else ""
        if lacks and not any(isinstance(matches[name][0], str) for name in names.values()):
            continue  # CIFAR-100 has a testing batch 1 of 1, too
        yield Found(folder, [*names.values()], partial(_read, tree, form, names), lacks)


def _form(file: File, suffix: str) -> str:
    start = head(file)
    if start.startswith(b"MATLAB") or suffix == ".mat":
        return "MATLAB"
    if start.startswith(b"\x80"):
        return "python"
    rows = size(file) % (1 + PIXELS) == 0 and b"\0" <= start[:1] < b"\n"
    return "binary" if rows or suffix == ".bin" else "python"


def _read(tree: Tree, form: str, names: dict[int, str]) -> Dataset:
    images = np.empty((len(official.BATCHES), official.PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty((len(official.BATCHES), official.PER_BATCH), np.uint8)
    with progress(f"reading {tree.where.name}", len(official.BATCHES), "batches") as update:
        for batch, name in names.items():
            most = official.LARGEST_IMAGE * official.PER_BATCH + 1
            pixels, labels[batch] = parsed(content(tree.files[name], most), form, tree.where / name)
            images[batch] = pixels.reshape(official.PER_BATCH, 3, 32, 32).transpose(0, 2, 3, 1)
            update(1)
    return official.dataset(images.reshape(-1, 32, 32, 3), labels.reshape(-1))


def parsed(batch: bytes, form: str, where: Path) -> tuple[UInt8[np.ndarray, "n 3072"], UInt8[np.ndarray, "n"]]:
    """Return a batch's pixels (an image's red plane, then green, then blue) and its labels."""
    try:
        pixels, labels = {"python": _python, "binary": _binary, "MATLAB": _matlab}[form](batch)
    except Exception as error:  # damaged bytes can make a reader raise anything
        damaged = UserError("not a CIFAR-10 batch, or cut or damaged", where, official.GET_ANOTHER_COPY)
        if where.is_file() and not batch.startswith((b"\x80", b"MATLAB")):
            damaged = kinds.unlike(where, "a CIFAR-10 batch", damaged)
        raise damaged from error
    n = official.PER_BATCH
    if (pixels.shape, len(labels)) != ((n, PIXELS), n):
        what = f"{pixels.shape} with {len(labels):,} labels instead of {n:,} images"
        raise UserError(f"batch of the wrong size ({what})", where, official.GET_ANOTHER_COPY)
    official.check_labels(labels, where)
    return pixels, np.array(labels, dtype=np.uint8)


def _python(batch: bytes) -> tuple[UInt8[np.ndarray, "n m"], list[Any]]:
    entries = {pickles.text_of(key): value for key, value in pickles.read(io.BytesIO(batch)).items()}
    pixels, labels = pickles.array_of(entries["data"]), pickles.array_of(entries["labels"])
    if pixels is None or pixels.dtype != np.uint8:
        raise ValueError("no array of bytes")
    return pixels, entries["labels"] if labels is None else labels.tolist()


def _binary(batch: bytes) -> tuple[UInt8[np.ndarray, "n m"], list[Any]]:
    rows = np.frombuffer(batch, np.uint8).reshape(-1, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0].tolist()


def _matlab(batch: bytes) -> tuple[UInt8[np.ndarray, "n m"], list[Any]]:
    """Read a file of MATLAB 5 to 7. SciPy's reader crashes on a damaged one (1.17: a segmentation fault)."""
    arrays, most = dict[bytes, np.ndarray](), official.LARGEST_IMAGE * official.PER_BATCH
    for kind, element in _elements(batch[128:]):
        if kind == 15:  # compressed
            kind, element = next(_elements(zlib.decompressobj().decompress(element, most)))
        if kind == 14:  # a matrix: its flags, its sizes, its name, its numbers
            (_, _), (_, sizes), (_, name), (numbers, data) = islice(_elements(element), 4)
            if numbers in NUMBERS:
                array = np.frombuffer(data, NUMBERS[numbers])
                arrays[name] = array.reshape(np.frombuffer(sizes, "<u4").tolist(), order="F")
    if arrays[b"data"].dtype != np.uint8:
        raise ValueError("no array of bytes")
    return arrays[b"data"], [int(label) for label in arrays[b"labels"].reshape(-1)]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of a MATLAB file or matrix, which begin with their kind and size, both in 4 bytes if small."""
    at = 0
    while at + 8 <= len(data):
        kind, count = np.frombuffer(data, "<u4", 2, at).tolist()
        start, size, kind = (at + 4, kind >> 16, kind & 0xFFFF) if kind >> 16 else (at + 8, count, kind)
        yield kind, data[start : start + size]
        at = start + max(size, 4) if start == at + 4 else start + size + (-size % 8 if kind != 15 else 0)
