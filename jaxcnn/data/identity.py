"""Judge by its content whether a copy is CIFAR-10, in which order, and with whose pixels, whatever its form."""

import hashlib
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.progress import say

# SHA-256 of the labels as int64, for training and for testing, in the order of the batches.
LABELS = (
    "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
)
# SHA-256 of the pixels, as published of the Hugging Face hub's files: batches 4, 3, 2, 5, 1, and the test batch.
PIXELS = (
    "c5b8e1d062f7373a5bc758689b1b9c2a7caf093109b95ceb98cecaf2bd266807",
    "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
)
HUB = [3, 2, 1, 4, 0]
# The tutorial's horse is training image 7. Of its 16 x 16 squares: whether each is brighter than the one to its left.
# Up to 24 of the 240 differ in coarse JPEGs of it and with noise, 83 or more in every other image of CIFAR-10.
NEAR = 50
SQUARES = "db1fbf107e39fc335a67a4da45b183c22aa4d64cab185c38985938b4dc0e"


def identified(data: Dataset, where: Path, known: bool, allow_modified: bool) -> Dataset:
    """Say what a copy is, and return it in the original's order if only the batches were swapped.

    known: whether its files' checksums are official ones.
    allow_modified: whether to take classes with other numbers of images than CIFAR-10's, otherwise a UserError.
    """
    if odd := [text for split in (data.train, data.test) for text in _odd_counts(split)]:
        what = f"not CIFAR-10, or modified: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}"
        if not allow_modified:
            todo = f"{official.GET_ANOTHER_COPY}, or if you trust it: prepare_data.py --from it --allow-modified"
            raise UserError(what, where, todo)
        say(f"warning: {what}")
    data = _reordered(data)
    say(description(data, known))
    if order := _other_order(data):
        say(order)
    return data


def description(data: Dataset, known: bool = False) -> str:
    """Say whose pixels these are, with a checksum of pixels and labels for comparing two copies."""
    pixels = _sha256(*data.train.images.reshape(5, -1)[HUB]), _sha256(data.test.images)
    whole = hashlib.sha256("".join((*pixels, *map(_sha256, _labels(data)))).encode()).hexdigest()
    whose = "the official pixels" if known or pixels == PIXELS else "not the official pixels"
    return f"CIFAR-10, {whose}; sha256 of pixels and labels {whole[:16]}"


def _sha256(*arrays: np.ndarray) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()


def _labels(data: Dataset) -> list[Int64[np.ndarray, "n"]]:
    return [split.labels.astype(np.int64) for split in (data.train, data.test)]


def _odd_counts(split: Split) -> list[str]:
    right = len(split) // len(official.CLASS_NAMES)
    counts = np.bincount(split.labels, minlength=len(official.CLASS_NAMES)).tolist()
    named = zip(counts, official.CLASS_NAMES, strict=True)
    return [f"{n:,} {split.name} images of {name} instead of {right:,}" for n, name in named if n != right]


def _reordered(data: Dataset) -> Dataset:
    """Put the five batches in their order, unlike the hub's files, which were made in the archive's order."""
    batches = _labels(data)[0].reshape(5, -1)
    orders = (list(order) for order in permutations(range(5)))  # the first is the order that they have
    order = next((order for order in orders if _sha256(batches[order]) == LABELS[0]), sorted(HUB))
    if order == sorted(order):
        return data
    images, labels = (a.reshape(5, -1)[order].reshape(a.shape) for a in (data.train.images, data.train.labels))
    return replace(data, train=Split("train", images, labels))


def _other_order(data: Dataset) -> str:
    """Say which images are not in the original's order, and where the tutorial's horse is."""
    kinds = zip(("training", "test"), _labels(data), LABELS, strict=True)
    other = [kind for kind, labels, known in kinds if _sha256(labels) != known]
    if "training" not in other and _unlike_the_horse(data.train.images[7:8]) >= NEAR:
        return (
            "warning: train_00007 is not the tutorial's horse: are pixels or images in another order than their labels?"
        )
    if not other:
        return ""
    text = f"the order of the {' and '.join(other)} images is not the original's, and neither are their ids"
    if "training" not in other:
        return text
    horse = _horse(data.train)
    return f"{text}; the tutorial's horse is {'not found' if horse is None else data.train.ids[horse]}"


def _horse(train: Split) -> int | None:
    """Find training image 7 of the original, in any compression; None if it is not there."""
    horses = np.flatnonzero(train.labels == official.CLASS_NAMES.index("horse"))
    differ = _unlike_the_horse(train.images[horses])
    return int(horses[differ.argmin()]) if len(differ) and differ.min() < NEAR else None


def _unlike_the_horse(images: UInt8[np.ndarray, "n 32 32 3"]) -> Int64[np.ndarray, "n"]:
    """Count the squares that are not, or are, brighter than the one to their left, as they are in the horse."""
    squares = images.reshape(-1, 16, 2, 16, 2, 3).sum((2, 4, 5), dtype=np.int32)
    brighter = (squares[:, :, 1:] > squares[:, :, :-1]).reshape(-1, 240)
    return (brighter != np.unpackbits(np.frombuffer(bytes.fromhex(SQUARES), np.uint8))).sum(1)
