from typing import Any, NamedTuple

import numpy as np
import torch


class Example(NamedTuple):
    """A PyTorch module, its Flax port, and what to call them with."""

    torch_module: torch.nn.Module
    flax_module: Any  # a Linen module, not initialised, or an NNX module
    inputs: tuple[np.ndarray, ...]  # as the PyTorch module takes them
    options: dict[str, Any] = {}  # noqa: RUF012 (keyword arguments of parity.check)


def floats(*shape: int) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def tokens(vocabulary: int, *shape: int) -> np.ndarray:
    """Indices below the vocabulary's size."""
    return np.random.default_rng(0).integers(0, vocabulary, shape)
