"""The engine on a pair that it has never heard of: nested and repeated modules, a dropout of its own, kinks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import links, mistakes
from parity.kinks import decisions
from parity.pair import Case, Pair, flax_pass, torch_pass
from parity.table import CONV, DENSE, DENSE_AFTER_FLATTEN, Table, layer

CALLS = ["block/conv", "block/act", "block", "block/conv#1", "block/act#1", "block#1", "drop", "pool", "flat", "head"]


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU()

    def forward(self, x):
        return x + self.act(self.conv(x))


class TorchNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.drop = TorchBlock(), torch.nn.Dropout(0.25)
        self.pool, self.flat, self.head = torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(48, 5)

    def forward(self, x):
        return self.head(self.flat(self.pool(self.drop(self.block(self.block(x))))))


class Act(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


class Pool(nn.Module):
    def __call__(self, x):
        return nn.max_pool(x, (2, 2), (2, 2))


class Flat(nn.Module):
    def __call__(self, x):
        return x.reshape(len(x), -1)


class MyDropout(nn.Module):
    def __call__(self, x, key):
        return x if key is None else jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0)


class Block(nn.Module):
    def setup(self):
        self.conv, self.act = nn.Conv(3, (3, 3), dtype="float64", param_dtype="float64"), Act()

    def __call__(self, x):
        return x + self.act(self.conv(x))


class Network(nn.Module):
    def setup(self):
        self.block, self.drop, self.pool, self.flat = Block(), MyDropout(), Pool(), Flat()
        self.head = nn.Dense(5, dtype="float64", param_dtype="float64")

    def __call__(self, x, key):
        return self.head(self.flat(self.pool(self.drop(self.block(self.block(x)), key))))


def torch_loss(logits, labels, real):
    return torch.nn.functional.cross_entropy(logits[real], torch.from_numpy(labels[real]).long())


def flax_loss(logits, labels, real):
    losses = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels.astype(int)]
    return jnp.where(real, losses, 0).sum() / real.sum()


@pytest.fixture
def pair():
    table = Table((*layer("block.conv", CONV), *layer("head", DENSE_AFTER_FLATTEN, h=4, w=4)))
    return Pair(
        torch_module=TorchNetwork(), flax_module=Network(), precision="float64", table=table,
        torch_input=lambda images, dtype: (torch.from_numpy(images).movedim(-1, 1).to(dtype).contiguous(),),
        flax_input=lambda images, dtype: (jnp.asarray(images, dtype),),
        apply=lambda module, variables, x, key: (module.apply(variables, *x, key), variables),
        torch_loss=torch_loss, flax_loss=flax_loss, optimizers={},
    )  # fmt: skip


@pytest.fixture
def case(pair):
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.3, t.shape).astype(np.float32) for name, t in pair.torch_module.state_dict().items()
    }
    images, labels = rng.normal(size=(6, 8, 8, 3)), rng.integers(0, 5, 6, dtype=np.uint8)
    return Case("noise", weights, images, labels, np.arange(6) < 4, jax.random.key(0))


def first_failure(pair, case):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return next((check for check in links.one_pass(pair, case) if not check.passed), None)


def test_every_call_of_every_module_is_seen_by_the_same_name_and_agrees(pair, case):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours = flax_pass(pair, case)
        theirs = torch_pass(pair, case, torch.float64, ours.masks)
        checks = list(links.one_pass(pair, case))
    assert list(ours.activations) == list(theirs.activations) == ["input", *CALLS]
    assert list(decisions(pair, ours)) == ["block/act", "block/act#1", "pool"]
    assert 0 < ours.masks["drop"].mean() < 1
    assert all(check.passed for check in checks), [str(check) for check in checks if not check.passed]
    assert {f"{name}.{kind}" for name in ("block.conv", "head") for kind in ("weight", "bias")} <= {
        check.tensor for check in checks if check.link == "gradients"
    }


def test_evaluation_drops_nothing(pair, case):
    assert first_failure(pair, case._replace(key=None)) is None


def test_a_module_is_left_as_it_was(pair, case):
    before = {name: tensor.clone() for name, tensor in pair.torch_module.state_dict().items()}
    first_failure(pair, case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.torch_module.state_dict().items())
    assert not any(module._forward_hooks for module in pair.torch_module.modules())


@pytest.mark.parametrize(
    ("mistake", "link", "tensor"),
    [
        (mistakes.axes("block/conv/kernel", "o i h w -> h w o i"), "activations", "block/conv"),
        (mistakes.axes("head/kernel", DENSE), "activations", "head"),
        (mistakes.operation("block/act", lambda module, call, x: nn.gelu(x)), "activations", "block/act"),
        (mistakes.inputs(lambda x: x[:, :, ::-1]), "activations", "input"),
        (mistakes.loss(lambda right, *given: 2 * right(*given)), "outputs", "loss"),
    ],
)
def test_a_mistake_is_noticed_where_it_is(pair, case, mistake, link, tensor):
    failure = first_failure(mistake(pair), case)
    assert (failure.link, failure.tensor) == (link, tensor)
