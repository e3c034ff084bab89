"""One layer of attention, ported wrongly: what is said of its scale, mask, softmax, heads and rotary positions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import chain
from parity.diagnosis.search import Search
from parity.fed import feed
from parity.given import Given
from parity.matched import Matched
from tests.parity.pairs.example import floats
from tests.parity.small import usual_jax  # noqa: F401

HEADS, WIDTH, LENGTH = 2, 4, 5  # WIDTH: features of a head
TURNS = np.linspace(0.3, 2.5, LENGTH * WIDTH // 2).reshape(LENGTH, WIDTH // 2)  # angles
COS, SIN = torch.tensor(np.cos(TURNS)), torch.tensor(np.sin(TURNS))


def as_llama(x):
    a, b = x.chunk(2, -1)
    return x * torch.cat((COS, COS), -1) + torch.cat((-b, a), -1) * torch.cat((SIN, SIN), -1)


def as_two_halves(x):
    a, b = x.chunk(2, -1)
    return torch.cat((a * COS - b * SIN, b * COS + a * SIN), -1)


def as_neighbours(x):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * COS - b * SIN, b * COS + a * SIN), -1).flatten(-2)


def as_complex(x):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(COS), torch.tensor(TURNS))).flatten(-2)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def written(q, k, v):
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    return torch.softmax(scores.masked_fill(torch.tril(torch.ones(LENGTH, LENGTH)) == 0, -1e9), -1) @ v


class Attention(torch.nn.Module):
    def __init__(self, attend=fused, turn=as_llama):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(8, HEADS * WIDTH) for _ in "qkv")
        self.attend, self.turn = attend, turn

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.attend(self.turn(q), self.turn(k), v).transpose(1, 2).flatten(2)


def turned(x, neighbours, sign=1.0):
    """Turn each pair of features: 2i and 2i + 1, or i and i + d / 2."""
    a, b = (x[..., ::2], x[..., 1::2]) if neighbours else jnp.split(x, 2, -1)
    cos, sin = np.cos(TURNS).astype(x.dtype), sign * np.sin(TURNS).astype(x.dtype)
    parts = a * cos - b * sin, b * cos + a * sin
    return jnp.stack(parts, -1).reshape(x.shape) if neighbours else jnp.concatenate(parts, -1)


class Port(nn.Module):
    """Its port, right but for what is told."""

    scale: float = WIDTH**-0.5
    diagonal: int = 0  # the last key that a query sees, from its own position
    axis: int = -1  # of the softmax
    inner: bool = False  # heads are the inner axis
    turn: object = partial(turned, neighbours=False)

    @nn.compact
    def __call__(self, x):
        q, k, v = (self.split(nn.Dense(8, name=name)(x)) for name in "qkv")
        scores = self.turn(q) @ self.turn(k).swapaxes(-1, -2) * self.scale
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool), self.diagonal)
        y = jax.nn.softmax(jnp.where(mask, scores, -1e9), self.axis) @ v
        return (y.transpose(0, 2, 3, 1) if self.inner else y.swapaxes(1, 2)).reshape(x.shape)

    def split(self, x):
        if self.inner:
            return x.reshape(*x.shape[:2], -1, HEADS).transpose(0, 3, 1, 2)
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def said(torch_module, flax_module):
    with jax.enable_x64(True):
        given = Given(torch_module.double(), flax_module, (floats(3, LENGTH, 8),))
        matched = Matched(given, None, None, chain.SGD, 2)
        return Search(matched, feed(matched)).run()


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({}, None, ""),
        ({"scale": 1.0}, "attention-scale", ""),
        ({"scale": 0.3}, "attention-scale", "3"),
        ({"diagonal": 1}, "attention-mask", "off by one"),
        ({"diagonal": -1}, "attention-mask", "off by one"),
        ({"diagonal": LENGTH}, "attention-mask", ""),
        ({"axis": -2}, "softmax-axis", ""),
        ({"axis": -3}, "softmax-axis", ""),
        ({"inner": True}, "attention-heads", ""),
    ],
)
def test_a_mistake_of_attention(attend, wrong, code, words):
    findings = said(Attention(attend), Port(**wrong))
    assert {f.code for f in findings} == {code} - {None}, findings
    assert all(f.certain and f.repair and words in f.text for f in findings)


@pytest.mark.parametrize("theirs", [as_llama, as_two_halves, as_neighbours, as_complex])
@pytest.mark.parametrize("wrong", ["", "pairs", "turns the other way", "does not rotate"])
def test_a_mistake_of_rotary_positions(theirs, wrong):
    neighbours = theirs in (as_neighbours, as_complex)
    right = partial(turned, neighbours=neighbours)
    other = partial(turned, neighbours=not neighbours)
    ours = {"": right, "pairs": other, "turns the other way": partial(right, sign=-1.0), "does not rotate": lambda x: x}
    findings = said(Attention(turn=theirs), Port(turn=ours[wrong]))
    # With its halves exchanged in queries and keys, a rotation turns the other way.
    assert {f.code for f in findings} - {"weights-shuffled"} == ({"rotary"} if wrong else set()), findings
    assert not wrong or any(wrong in f.text for f in findings if f.code == "rotary")
