"""Data sets in memory: images, labels and class names."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt, UInt8

from jaxcnn.errors import UserError


def places_in_class(labels: UInt[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Count for each image how many of its class come before it. Every fifth of a class may be kept for testing."""
    order = np.argsort(labels, kind="stable")
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return places


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in the order of their ids: row i is image i of the original files."""

    name: str  # `train` or `test`
    images: UInt8[np.ndarray, "n h w c"]
    labels: UInt[np.ndarray, "n"]  # indices into `Dataset.class_names`
    files: tuple[str, ...] = ()  # of one's own pictures: where each is, in their folder

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> list[str]:
        """The ids of tensorflow-datasets: `train_00000`, `train_00001`, ..., by position in the original files."""
        return [f"{self.name}_{i:05d}" for i in range(len(self))]

    @property
    def mark(self) -> str:
        """A checksum of the images and the labels, which shows if they have changed."""
        return "".join(f"{zlib.crc32(np.ascontiguousarray(array).data):08x}" for array in (self.images, self.labels))

    @property
    def names(self) -> Sequence[str]:
        """The images' names for people: their files, or else their ids."""
        return self.files or self.ids


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: two splits and the names of the classes."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split

    def find(self, image_id: str) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """Return the image and the label with an id such as `train_00007`. Raise UserError if there is none."""
        for split in (self.train, self.test):
            if image_id in (ids := split.ids):
                index = ids.index(image_id)
                return split.images[index], int(split.labels[index])
        ranges = f"train_00000 to {self.train.ids[-1]} and test_00000 to {self.test.ids[-1]}"
        raise UserError(f"no image {image_id!r}", f"data set {self.name}", f"ids are {ranges}")
