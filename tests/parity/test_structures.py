"""Tables of layers that are gated, fused, shared, or the user's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from tests.parity.pairs.example import floats
from tests.parity.test_proposal import carried


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.sigmoid(self.gate(x)) * self.value(x)


class FlaxGated(nn.Module):
    @nn.compact
    def __call__(self, x):
        value = nn.Dense(4)(x)
        return value * nn.sigmoid(nn.Dense(4)(x))


def test_parallel_layers_called_in_the_other_order():
    flax, state = carried(Gated(), FlaxGated(), floats(3, 4))
    for number, name in enumerate(("value", "gate")):
        np.testing.assert_array_equal(flax[f"Dense_{number}/kernel"], state[f"{name}.weight"].T)
        np.testing.assert_array_equal(flax[f"Dense_{number}/bias"], state[f"{name}.bias"])


class FlaxSquare(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.tanh(nn.Dense(4)(x))
        return x


def test_square_kernels_are_transposed():
    theirs = torch.nn.Sequential(*(m for _ in range(3) for m in (torch.nn.Linear(4, 4), torch.nn.Tanh())))
    flax, state = carried(theirs, FlaxSquare(), floats(3, 4))
    for number in range(3):
        np.testing.assert_array_equal(flax[f"Dense_{number}/kernel"], state[f"{2 * number}.weight"].T)


class Attention(torch.nn.Module):
    """One projection; the rows of each head are its query, key and value."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, torch.nn.Linear(6, 18), torch.nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], self.num_heads, 3, 3).transpose(1, 2).unbind(3)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class FlaxAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.DenseGeneral((2, 3), name=name)(x) for name in ("q", "k", "v"))
        return nn.DenseGeneral(6, axis=(-2, -1), name="o")(nn.dot_product_attention(q, k, v))


def test_projections_that_are_fused_within_each_head():
    flax, state = carried(Attention(), FlaxAttention(), floats(2, 5, 6))
    weight, bias = state["qkv.weight"].reshape(2, 3, 3, 6), state["qkv.bias"].reshape(2, 3, 3)
    for part, name in enumerate("qkv"):
        np.testing.assert_array_equal(flax[f"{name}/kernel"], np.moveaxis(weight[:, part], -1, 0))
        np.testing.assert_array_equal(flax[f"{name}/bias"], bias[:, part])
    np.testing.assert_array_equal(flax["o/kernel"], state["proj.weight"].T.reshape(2, 3, 6))


class Separate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.n_head, self.q, self.k, self.v = 2, *(torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).reshape(*x.shape[:2], 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


class FlaxFused(nn.Module):
    within: bool

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(18)(x)
        y = y.reshape(*x.shape[:2], *((2, 3, 3) if self.within else (3, 2, 3)))
        q, k, v = jnp.moveaxis(y, -2 if self.within else -3, 0)
        return nn.dot_product_attention(q, k, v).reshape(x.shape)


@pytest.mark.parametrize("within", [False, True])
def test_projections_that_flax_fuses(within):
    """Block after block, or within each head."""
    flax, state = carried(Separate(), FlaxFused(within), floats(2, 5, 6))
    kernels = np.stack([state[f"{name}.weight"].T.reshape(6, 2, 3) for name in "qkv"], axis=2 if within else 1)
    biases = np.stack([state[f"{name}.bias"].reshape(2, 3) for name in "qkv"], axis=1 if within else 0)
    np.testing.assert_array_equal(flax["Dense_0/kernel"], kernels.reshape(6, 18))
    np.testing.assert_array_equal(flax["Dense_0/bias"], biases.reshape(18))


class Shared(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.other, self.shared = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(torch.tanh(self.other(torch.tanh(self.shared(x)))))


class FlaxShared(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.Dense(4)
        return first(nn.tanh(nn.Dense(4)(nn.tanh(first(x)))))


def test_a_layer_that_is_called_twice_is_one():
    flax, state = carried(Shared(), FlaxShared(), floats(3, 4))
    np.testing.assert_array_equal(flax["Dense_0/kernel"], state["shared.weight"].T)
    np.testing.assert_array_equal(flax["Dense_1/kernel"], state["other.weight"].T)


class Own(torch.nn.Module):
    """Square, as it is multiplied from the right; and two vectors whose names say nothing."""

    def __init__(self):
        super().__init__()
        self.u = torch.nn.Parameter(torch.randn(4, 4))
        self.first, self.second = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(4))

    def forward(self, x):
        return (x @ self.u) * self.first + self.second


class FlaxOwn(nn.Module):
    turned: bool

    @nn.compact
    def __call__(self, x):
        shift, scale = (self.param(name, nn.initializers.normal(), (4,)) for name in "xy")
        matrix = self.param("z", nn.initializers.normal(), (4, 4))
        return x @ (matrix.T if self.turned else matrix) * scale[None] + shift[None]


class Top(nn.Module):
    turned: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(FlaxOwn(self.turned)(x))


@pytest.mark.parametrize("turned", [False, True])
def test_raw_parameters_of_a_layer_of_the_users_own(turned):
    theirs = torch.nn.Sequential(Own(), torch.nn.Linear(4, 4))
    flax, state = carried(theirs, Top(turned), floats(3, 4))
    np.testing.assert_array_equal(flax["FlaxOwn_0/z"], state["0.u"].T if turned else state["0.u"])
    np.testing.assert_array_equal(flax["FlaxOwn_0/y"], state["0.first"])
    np.testing.assert_array_equal(flax["FlaxOwn_0/x"], state["0.second"])


class FlaxExtra(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        return nn.Dense(5)(nn.Dense(7, use_bias=False, name="extra")(x)[:, :6])


def test_what_has_no_counterpart_is_named():
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6, bias=False), torch.nn.Linear(6, 5))
    table = parity.propose(theirs, FlaxExtra(), floats(3, 4))
    left = sorted(table.left)
    assert len(left) == 2
    assert "1.weight" in left[0]
    assert "[6]" in left[0]
    assert "extra/kernel" in left[1]
    assert "[6, 7]" in left[1]
    assert {e.torch for e in table.expanded} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(words in str(table) for words in table.left)


class Tempered(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.fc(x) * self.scale


class FlaxTempered(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x) * self.param("scale", nn.initializers.ones, ())


def test_a_parameter_that_is_a_number():
    flax, state = carried(Tempered(), FlaxTempered(), floats(3, 4))
    assert flax["scale"].shape == ()
    assert flax["scale"] == state["scale"]


class Sloped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.prelu, self.fc = torch.nn.Conv2d(2, 3, 3), torch.nn.PReLU(), torch.nn.Linear(3 * 2 * 2, 5)

    def forward(self, x):
        return self.fc(self.prelu(self.conv(x)).flatten(1))


class FlaxSloped(nn.Module):
    channels_last: bool

    @nn.compact
    def __call__(self, x):
        x, slope = nn.Conv(3, (3, 3), padding="VALID")(x), self.param("slope", nn.initializers.constant(0.25), ())
        x = jnp.where(x > 0, x, slope * x)
        return nn.Dense(5)((x if self.channels_last else x.transpose(0, 3, 1, 2)).reshape(len(x), -1))


@pytest.mark.parametrize(("channels_last", "axes"), [(False, "o i -> i o"), (True, "o (c h w) -> (h w c) o")])
def test_a_layer_behind_what_only_a_name_tells(channels_last, axes):
    """What is found of it before that is placed is not kept."""
    table = parity.propose(Sloped(), FlaxSloped(channels_last), floats(3, 2, 4, 4))
    assert table.doubts == table.left == ()
    assert {e.torch: e.axes for e in table.expanded}["fc.weight"] == axes


def test_a_module_is_left_as_it_was():
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(), torch.nn.Linear(4, 4)).train()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    random, x = torch.get_rng_state(), floats(3, 4)
    parity.propose(theirs, FlaxSquare(), x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in theirs.modules())
    np.testing.assert_array_equal(x, floats(3, 4))
    assert not jax.config.jax_enable_x64
