"""A case of the benchmark, and the images that all its contenders work on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxcnn.config import DEFAULTS, Config

IMAGES, CIFAR10 = 2048, 50_000  # at least so many that the contenders work on; those of a training

Cost = tuple[int, int] | None  # dispatches, and bytes sent to the device with them; None if there are no dispatches
Run = Callable[[int], Cost]  # does a number of steps


@dataclass(frozen=True)
class Case:
    """What the contenders are compared at.

    task: training; inference, of images on the device; or prediction, of one image at a time, from the NumPy array to
    that of its probabilities.  width: of the network, in multiples of the recipe's.  size: of a trained image.
    """

    task: str
    batch_size: int
    recipe: str = "tutorial"
    width: int = 1
    size: int = 32

    @property
    def config(self) -> Config:
        """Return the configuration of the whole training."""
        default = DEFAULTS[self.recipe]["cifar10"]
        return replace(default, batch_size=self.batch_size, widths=tuple(self.width * n for n in default.widths))

    @property
    def per_epoch(self) -> int:
        """Return the steps of an epoch of the whole training."""
        return -(-CIFAR10 // self.batch_size)


def fixed_data(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [n, 32, 32, 3], and the labels that every contender works on, in whole batches."""
    rng, images = np.random.default_rng(0), -(-IMAGES // batch_size) * batch_size
    return rng.integers(0, 256, (images, 32, 32, 3), np.uint8), rng.integers(0, 10, images, np.uint8)
