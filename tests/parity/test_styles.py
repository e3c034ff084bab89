"""Right ports in styles that people use: none is reported, and no array is left over."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import weight_norm

import parity
from jaxcnn import UserError
from tests.parity.pairs.example import floats, tokens
from tests.parity.small import VECTORS, FlaxTiny, usual_jax  # noqa: F401

T = torch.nn
NORMAL = nn.initializers.lecun_normal()  # without a dtype, as most write it
WORDS = tokens(11, 3, 5)


class Theirs(T.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Ours(nn.Module):
    function: Any

    @nn.compact
    def __call__(self, *inputs):
        return self.function(self, *inputs)


def pair_of_slice():
    """What a causal convolution has too much, PyTorch cuts off; Flax pads on one side."""
    theirs = Theirs(lambda m, x: m.out(F.silu(m.conv(x)[..., : x.shape[-1]]).mT), conv=T.Conv1d(4, 4, 3, padding=2),
                    out=T.Linear(4, 2))  # fmt: skip
    x = floats(2, 4, 7)
    ours = lambda m, x: nn.Dense(2)(nn.silu(nn.Conv(4, (3,), padding=((2, 0),))(x)))  # noqa: E731
    return theirs, ours, (x,), {"flax_inputs": (x.swapaxes(1, 2),)}


def pair_of_one_call():
    """PyTorch calls a layer twice, Flax once, with both inputs in a batch."""
    theirs = Theirs(lambda m, a, b: torch.tanh(m.e(a)) * m.e(b), e=T.Linear(4, 3))

    def ours(m, a, b):
        one, two = jnp.split(nn.Dense(3, name="e")(jnp.concatenate([a, b])), 2)
        return nn.tanh(one) * two

    return theirs, ours, (VECTORS, floats(7, 4)[1:]), {}


def pair_of_channels_first():
    """Kernels and images as PyTorch has them."""
    theirs = Theirs(lambda m, x: m.fc(torch.relu(m.conv(x)).flatten(1)), conv=T.Conv2d(3, 4, 3), fc=T.Linear(16, 5))

    def ours(m, x):
        axes = ("NCHW", "OIHW", "NCHW")
        kernel = m.param("kernel", NORMAL, (4, 3, 3, 3))
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=axes)
        x = nn.relu(x + m.param("bias", nn.initializers.zeros, (4,))[:, None, None]).reshape(len(x), -1)
        return x @ m.param("weight", NORMAL, (5, 16)).T + m.param("offset", nn.initializers.zeros, (5,))

    x = floats(2, 3, 4, 4)
    return theirs, ours, (x,), {"flax_inputs": (x,)}


def pair_of_embeddings():
    """Raw arrays that are looked up: one as PyTorch's, one transposed."""
    theirs = Theirs(lambda m, x: m.words(x) * m.bias(x), words=T.Embedding(11, 4), bias=T.Embedding(11, 4))

    def ours(m, x):
        words = m.param("words", nn.initializers.normal(), (11, 4)).at[x].get()
        return words * jnp.moveaxis(m.param("bias", nn.initializers.normal(), (4, 11))[:, x], 0, -1)

    return theirs, ours, (WORDS,), {}


def pair_of_a_tied_head():
    """Flax looks at the embedding's array itself."""
    forward = lambda m, x: F.linear(m.fc(torch.tanh(m.words(x))), m.words.weight, m.bias)  # noqa: E731
    theirs = Theirs(forward, words=T.Embedding(11, 4), fc=T.Linear(4, 4), bias=T.Parameter(torch.zeros(11)))

    def ours(m, x):
        words = nn.Embed(11, 4, name="words")
        x = nn.Dense(4, name="fc")(jnp.tanh(words(x)))
        return x @ words.variables["params"]["embedding"].T + m.param("bias", nn.initializers.zeros, (11,))

    return theirs, ours, (WORDS,), {}


def pair_of_a_dict():
    theirs = Theirs(lambda m, given: m.a(given["x"]) + m.b(given["more"][0]), a=T.Linear(4, 3), b=T.Linear(2, 3))
    ours = lambda m, given: nn.Dense(3, name="a")(given["x"]) + nn.Dense(3, name="b")(given["more"][0])  # noqa: E731
    return theirs, ours, ({"x": VECTORS, "more": [torch.tensor(floats(6, 2))]},), {}


def pair_of_cells(kind, cell):
    def forward(m, x):
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.out(state[0] if isinstance(state, tuple) else state)

    def ours(m, x):
        step = cell(5, name="cell")
        carry = step.initialize_carry(jax.random.key(0), x[:, 0].shape)
        carry = jax.tree.map(lambda one: one.astype(x.dtype), carry)
        for t in range(x.shape[1]):
            carry, y = step(carry, x[:, t])
        return nn.Dense(3, name="out")(y)

    return Theirs(forward, cell=kind(4, 5), out=T.Linear(5, 3)), ours, (floats(2, 3, 4),), {}


def pair_of_experts():
    experts = T.ModuleList(T.Sequential(T.Linear(4, 6), T.Tanh(), T.Linear(6, 4)) for _ in range(3))
    theirs = Theirs(lambda m, x: torch.stack([e(x) for e in m.experts]).sum(0), experts=experts)

    def ours(m, x):
        first, one = m.param("w1", NORMAL, (3, 4, 6)), m.param("b1", nn.initializers.zeros, (3, 1, 6))
        last, two = m.param("w2", NORMAL, (3, 6, 4)), m.param("b2", nn.initializers.zeros, (3, 1, 4))
        return (jnp.tanh(x @ first + one) @ last + two).sum(0)

    return theirs, ours, (VECTORS,), {}


class Expert(nn.Module):
    """Its layers are named from the last to the first: `Dense_0` is the outer one."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(jnp.tanh(nn.Dense(6)(x)))


def pair_of_mapped_experts():
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": None, "axis_size": 3}
    ours = lambda m, x: nn.vmap(Expert, **axes)(name="experts")(x).sum(0)  # noqa: E731
    theirs, _, inputs, options = pair_of_experts()
    return theirs, ours, inputs, options


class Scaled(nn.Module):
    """A block of a loop, with a raw parameter."""

    @nn.compact
    def __call__(self, x, _):
        return x + self.param("scale", nn.initializers.ones, (4,)) * nn.Dense(4)(x), None


def pair_of_a_loop():
    blocks = T.ModuleList(Theirs(lambda m, x: x + m.scale * m.fc(x), fc=T.Linear(4, 4)) for _ in range(3))
    for one in blocks:
        one.scale = T.Parameter(torch.ones(4))

    def ours(m, x):
        loop = nn.scan(Scaled, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return loop(name="blocks")(x, None)[0]

    return Theirs(lambda m, x: T.Sequential(*m.blocks)(x), blocks=blocks), ours, (VECTORS,), {}


def pair_of_slopes():
    """A PReLU whose slopes could be the next layer's bias."""
    layers = {"a": T.Linear(4, 4), "act": T.PReLU(4), "b": T.Linear(4, 4)}

    def ours(m, x):
        x = nn.Dense(4)(x)
        return nn.Dense(4)(jnp.where(x > 0, x, m.param("alpha", nn.initializers.constant(0.25), (4,)) * x))

    return Theirs(lambda m, x: m.b(m.act(m.a(x))), **layers), ours, (VECTORS,), {}


def pair_of_normalised_weights():
    def ours(m, x):
        v, g = m.param("v", NORMAL, (4, 3)), m.param("g", nn.initializers.ones, (3,))
        return x @ (g * v / jnp.linalg.norm(v, axis=0)) + m.param("bias", nn.initializers.zeros, (3,))

    return Theirs(lambda m, x: m.fc(x), fc=weight_norm(T.Linear(4, 3))), ours, (VECTORS,), {}


STYLES = {
    "a slice": pair_of_slice,
    "one call": pair_of_one_call,
    "channels first": pair_of_channels_first,
    "embeddings": pair_of_embeddings,
    "a tied head": pair_of_a_tied_head,
    "a dict": pair_of_a_dict,
    "LSTM cells": lambda: pair_of_cells(T.LSTMCell, nn.OptimizedLSTMCell),
    "GRU cells": lambda: pair_of_cells(T.GRUCell, nn.GRUCell),
    "experts": pair_of_experts,
    "mapped experts": pair_of_mapped_experts,
    "a loop": pair_of_a_loop,
    "slopes": pair_of_slopes,
    "normalised weights": pair_of_normalised_weights,
}


@pytest.mark.parametrize("name", STYLES)
def test_a_right_port_passes(name):
    theirs, ours, inputs, options = STYLES[name]()

    report = parity.check(theirs, Ours(ours), *inputs, precision=("float64",), steps=2, **options)
    assert report.passed, report
    assert report.table.left == ()
    assert not report.table.doubts or any("inside" in note for note in report.notes)
    assert report.diagnosis == ()
    state = theirs.state_dict()
    back = report.table.to_torch(report.table.to_flax(state))
    assert "cells" in name or all(np.array_equal(back[n], state[n].numpy()) for n in back)


@pytest.mark.parametrize("name", ["a slice", "one call"])
def test_what_is_another_inside_is_noted_in_both_precisions(name):
    theirs, ours, inputs, options = STYLES[name]()
    report = parity.check(theirs, Ours(ours), *inputs, steps=1, controls=True, **options)
    assert report.passed, report
    assert report.controls
    assert any("but what comes out and all gradients agree" in note for note in report.notes)


def test_what_is_another_inside_is_reported_if_it_comes_out():
    theirs, _, inputs, options = pair_of_slice()
    ours = Ours(lambda m, x: nn.Dense(2)(nn.silu(nn.Conv(4, (3,), padding=((1, 1),))(x))))
    report = parity.check(theirs, ours, *inputs, precision=("float64",), train=False, **options)
    assert {check.link for check in report.failed} >= {"layers", "activations", "outputs"}


def test_complex_weights_are_refused():
    module = Theirs(lambda m, x: (x * m.w).real)
    module.w = T.Parameter(torch.ones(4, dtype=torch.complex64))
    with pytest.raises(UserError, match=r"complex numbers \(w\): Theirs; only real ones"):
        parity.check(module, FlaxTiny(), VECTORS)
