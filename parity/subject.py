"""What is compared, how much of it, and in which precision."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import torch

from jaxcnn.data import Dataset
from jaxcnn.model import CNN, Params, model_for
from parity.compare import Check, judge


@dataclass(frozen=True)
class Size:
    """How much is computed. 500 images in batches of 8 make epochs of 63 steps, the last of 4 images."""

    images: int = 8
    subset: int = 500
    batch: int = 8
    steps: int = 200
    stretch: int = 10
    evaluated: int = 100
    cases: tuple[str, ...] = ("random", "images", "training", "huge", "tiny", "zeros", "flat", "ties")


@dataclass(frozen=True)
class Subject:
    """A network to compare in both frameworks.

    precision: `float32` or `float64`, of JAX's side.  params: float32, to start from.
    """

    precision: str
    params: Params
    data: Dataset
    size: Size = field(default_factory=Size)

    @property
    def network(self) -> CNN:
        """The network, computing in its precision."""
        widths = model_for(self.params)
        return CNN(widths.channels, widths.hidden, widths.classes, self.precision, self.precision)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of PyTorch's side: the truth, and float32 where its own error is the measure of JAX's."""
        return [torch.float64] + [torch.float32] * (self.precision == "float32")

    def cast(self, params: Params) -> Params:
        """Parameters on the device, in the precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.precision), params)

    def check(self, name: str, error: float, bound: float) -> Check:
        """A comparison by an error of its own kind."""
        return Check(f"{self.precision}/{name}", float(error), bound)

    def judge(self, name: str, ours: Any, others: list[Any], **options: Any) -> Check:
        """`compare.judge` of JAX's result against PyTorch's in `dtypes`."""
        return judge(f"{self.precision}/{name}", ours, *others, **options)
