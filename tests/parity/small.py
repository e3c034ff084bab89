"""A small pair with a layer of each kind, and a smaller one; JAX as its users have it."""

import flax.linen as nn
import jax
import pytest
import torch
import torch.nn.functional as F

import parity
from parity import Entry, Table
from tests.parity.pairs.example import floats
from tests.parity.pairs.linen_norm import BatchNorm


@pytest.fixture(autouse=True)
def usual_jax():
    """JAX as its users have it, not as strict as it goes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class TorchNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(2, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4)
        self.drop, self.flat = torch.nn.Dropout(0.25), torch.nn.Flatten()
        self.fc, self.head = torch.nn.Linear(64, 8), torch.nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.gelu(self.fc(self.flat(self.drop(x)))))


class Network(nn.Module):
    """Its port, right or with a mistake."""

    padding: int | str = 1
    epsilon: float = 1e-5
    relu: bool = True
    order: tuple[int, ...] = (0, 1, 2, 3)
    tanh: bool = False
    rate: float | None = 0.25
    momentum: float = 0.9
    norm: type = BatchNorm

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=2, padding=self.padding, name="conv")(x)
        options = {"momentum": self.momentum, "epsilon": self.epsilon, "use_fast_variance": False}
        x = self.norm(use_running_average=not train, **options, name="norm")(x)
        x = nn.relu(x) if self.relu else x
        x = x if self.rate is None else nn.Dropout(self.rate, name="drop")(x, deterministic=not train)
        x = x.transpose(self.order).reshape(len(x), -1)
        return nn.Dense(3, name="head")(nn.gelu(nn.Dense(8, name="fc")(x), approximate=self.tanh))


IMAGES = floats(3, 2, 8, 8)
TABLE = Table((
    Entry("conv.weight", "conv/kernel", "o i h w -> h w i o"),
    Entry("{conv,norm,fc,head}.bias", "{conv,norm,fc,head}/bias", "o -> o"),
    Entry("norm.weight", "norm/scale", "o -> o"),
    Entry("norm.running_{mean,var}", "norm/{mean,var}", "o -> o", collection="batch_stats"),
    Entry("fc.weight", "fc/kernel", "o (c h w) -> (h w c) o", {"h": 4, "w": 4}),
    Entry("head.weight", "head/kernel", "o i -> i o"),
))  # fmt: skip


def checked(flax_module, *, torch_module=None, inputs=(IMAGES,), **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TorchNetwork() if torch_module is None else torch_module()
    return parity.check(module, flax_module, *inputs, **{"precision": ("float64",), "steps": 2, **options})


def clipped(params):
    params = list(params)
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(params, 0.1) and None)
    return optimizer


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


class FlaxTiny(nn.Module):
    features: int = 5

    def setup(self):
        self.one, self.two = nn.Dense(self.features), nn.Dense(3)

    def __call__(self, x):
        return self.two(nn.tanh(self.one(x)))


TINY = Table((
    Entry("{one,two}.weight", "{one,two}/kernel", "o i -> i o"), Entry("{one,two}.bias", "{one,two}/bias", "o -> o"),
))  # fmt: skip
VECTORS = floats(6, 4)


def tiny(flax_module=None, **options):
    return checked(flax_module or FlaxTiny(), torch_module=Tiny, inputs=(VECTORS,), **options)
