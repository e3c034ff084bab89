from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401 (gives NumPy its bfloat16)
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import parity
from jaxcnn import Weights
from jaxcnn.networks import initial_variables
from jaxcnn.networks.tutorial import CNN
from parity.twins.tables import table_of

torch.set_num_threads(1)  # the suite runs in as many processes as there are cores

MAPS = 25_000  # of 65,530
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def small_weights(dtype: str = "float32", seed: int = 0) -> Weights:
    """A narrow network's parameters, every bit of their mantissas in use."""
    variables = initial_variables(CNN(2, 3), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.standard_normal(leaf.shape).astype(dtype)  # noqa: E731
    return Weights(CNN(2, 3, param_dtype=np.dtype(dtype)), jax.tree.map(draw, variables), tuple("0123456789"), "digits")


def state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """As PyTorch has them."""
    arrays = table_of(weights.network).to_torch(weights.variables)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load(path: Path, **options) -> tuple[Weights, list[str]]:
    """Weights from any form, and what was said."""
    said: list[str] = []
    return parity.load_weights(path, say=said.append, **options), said


def damaged(draw: Callable[[st.SearchStrategy], Any], whole: bytes) -> bytes:
    """A file cut short, with a bit flipped or a piece overwritten: anywhere, or near its ends, where headers are."""
    content, near = bytearray(whole), st.integers(1, 900)
    place = draw(st.integers(0, len(content) - 1) | st.just(0) | near | near.map(lambda i: len(content) - i))
    match draw(st.sampled_from(["cut", "flip", "overwrite"])):
        case "cut":
            del content[place:]
        case "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        case "overwrite":
            piece = draw(st.binary(max_size=40))
            content[place : place + len(piece)] = piece
    return bytes(content)


@pytest.fixture(autouse=True)
def few_maps():
    """Forget what is compiled before a process has more memory maps than it may: then nothing compiles any more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


@pytest.fixture
def weights() -> Weights:
    return small_weights()


class TutorialModel(torch.nn.Module):
    """Word for word the class of *Building a Convolutional Neural Network in PyTorch*."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 32, kernel_size=(3, 3), stride=1, padding=1)
        self.act1 = torch.nn.ReLU()
        self.drop1 = torch.nn.Dropout(0.3)

        self.conv2 = torch.nn.Conv2d(32, 32, kernel_size=(3, 3), stride=1, padding=1)
        self.act2 = torch.nn.ReLU()
        self.pool2 = torch.nn.MaxPool2d(kernel_size=(2, 2))

        self.flat = torch.nn.Flatten()

        self.fc3 = torch.nn.Linear(8192, 512)
        self.act3 = torch.nn.ReLU()
        self.drop3 = torch.nn.Dropout(0.5)

        self.fc4 = torch.nn.Linear(512, 10)

    def forward(self, x):
        # input 3x32x32, output 32x32x32
        x = self.act1(self.conv1(x))
        x = self.drop1(x)
        # input 32x32x32, output 32x32x32
        x = self.act2(self.conv2(x))
        # input 32x32x32, output 32x16x16
        x = self.pool2(x)
        # input 32x16x16, output 8192
        x = self.flat(x)
        # input 8192, output 512
        x = self.act3(self.fc3(x))
        x = self.drop3(x)
        # input 512, output 10
        x = self.fc4(x)
        return x
