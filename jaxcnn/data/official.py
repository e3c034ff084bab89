"""What is known about CIFAR-10 and its official files (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.progress import progress

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PER_BATCH = 10_000
LARGEST_IMAGE = 6400  # bytes in a batch: 3,073 in a binary one, and in a python one twice that if it is pickled as text

# Name, sha256 and bytes of each archive. The binary one comes first, since it needs no pickle.
ARCHIVES = {
    "cifar-10-binary.tar.gz": ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171),
    "cifar-10-python.tar.gz": ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170_498_071),
}
# The Hugging Face hub's files; their rows are the batches 4, 3, 2, 5, 1, as they lie in the python archive.
PARQUET = {
    "train-00000-of-00001.parquet": ("8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883", 119_705_255),
    "test-00000-of-00001.parquet": ("841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de", 23_940_850),
}
OTHER_SOURCES = "use a copy (--data-dir, prepare_data.py --from), a mirror ($JAXCNN_CIFAR10_MIRROR) or --dataset digits"
GET_ANOTHER_COPY = "get another copy, or run scripts/prepare_data.py without --from to download one"


def dataset(images: UInt8[np.ndarray, "n 32 32 3"], labels: UInt8[np.ndarray, "n"]) -> Dataset:
    """Return CIFAR-10 from all its images in the order of the official batches, those for training first."""
    n = 5 * PER_BATCH
    train, test = Split("train", images[:n], labels[:n]), Split("test", images[n:], labels[n:])
    return Dataset(name="cifar10", class_names=CLASS_NAMES, train=train, test=test)


def is_known(file: Path) -> bool:
    """Tell if a file has the checksum of an official archive, or of one of the hub's parquet files."""
    known = {size: sha256 for sha256, size in (*ARCHIVES.values(), *PARQUET.values())}
    return known.get(file.stat().st_size) == sha256(file) if file.stat().st_size in known else False


def sha256(file: Path) -> str:
    """Return the checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def not_known(file: Path) -> UserError:
    """Make the error for a file that should have been an official one."""
    _, size = {**ARCHIVES, **PARQUET}.get(file.name.removesuffix(".part"), ("", 0))
    sizes = f"{file.stat().st_size:,} bytes{f' instead of {size:,}' if size else ''}"
    what = f"not an official file of CIFAR-10 (sha256 {sha256(file)[:12]}..., {sizes})"
    return UserError(what, file, f"{GET_ANOTHER_COPY}, or if you trust it: prepare_data.py --from it --allow-modified")


def check_labels(labels: Iterable[object], where: Path) -> None:
    """Raise UserError naming the first label that is not one of CIFAR-10's."""
    for label in labels:
        if type(label) is not int or not 0 <= label < len(CLASS_NAMES):
            raise UserError(f"label {label!r:.20} is not one of 0 to 9", where, GET_ANOTHER_COPY)


def decode(picture: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    """Return the pixels of a PNG or a JPEG; ValueError if it is not 32 x 32 in 8 bits, before it is decoded."""
    from PIL import Image

    with Image.open(io.BytesIO(picture), formats=["PNG", "JPEG"]) as image:
        if image.size != (32, 32) or image.mode not in ("RGB", "RGBA", "P", "L"):
            raise ValueError(f"{image.width} x {image.height} {image.mode}, not 32 x 32 RGB")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def collected(splits: Mapping[str, Iterable[tuple[Path, bytes, Any]]], where: Path) -> Dataset:
    """Decode the pictures of both splits, each given as its place, its bytes and its label, in the order given."""
    n = len(BATCHES) * PER_BATCH
    images, labels, row = np.empty((n, 32, 32, 3), np.uint8), np.empty(n, np.uint8), 0
    with progress(f"decoding {where}", n, "images") as update:
        for split, first, end in (("train", 0, 5 * PER_BATCH), ("test", 5 * PER_BATCH, n)):
            for place, picture, label in splits[split]:
                if row == end:
                    raise UserError(f"more than {end - first:,} {split} images", where, GET_ANOTHER_COPY)
                try:
                    images[row] = decode(picture)
                except Exception as error:  # damaged bytes can make a decoder raise anything
                    what = str(error) if isinstance(error, ValueError) else "not a PNG or JPEG, or damaged"
                    raise UserError(f"image {row - first:,} of {split}: {what}", place, GET_ANOTHER_COPY) from error
                check_labels([label], place)
                labels[row] = label
                row += 1
                update(1)
            if row < end:
                what = f"{row - first:,} {split} images instead of {end - first:,}"
                raise UserError(what, where, GET_ANOTHER_COPY)
    return dataset(images, labels)
