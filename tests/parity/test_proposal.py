"""Tables that nobody wrote: those of the pairs, and of small ones in which names and shapes say nothing."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from flax.traverse_util import flatten_dict

import parity
from jaxcnn.files import flat_names
from parity import Entry, Table
from tests.parity.pairs import EXAMPLES, SOME
from tests.parity.pairs.example import floats


@functools.cache
def proposed(name):
    example = EXAMPLES[name]()
    return example, parity.propose(example.torch_module, example.flax_module, *example.inputs, **example.options)


def random_state(module, seed=0):
    """A `state_dict` of random numbers; what is tied is equal."""
    rng, drawn = np.random.default_rng(seed), {}
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            drawn.setdefault(id(tensor), rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
    state = module.state_dict(keep_vars=True).items()
    return {name: drawn[id(tensor)] for name, tensor in state if tensor.is_floating_point()}


def flax_shapes(module, *inputs):
    """The shapes of the variables: by collection and path of Linen's, by path of NNX's."""
    if isinstance(module, nnx.Module):
        state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
        return {"/".join(map(str, path)): variable.get_value().shape for path, variable in state}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        mode = {"train": False} if "train" in inspect.signature(type(module).__call__).parameters else {}
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        variables = jax.eval_shape(lambda: module.init(keys, *inputs, **mode))
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(variables).items()}


def own_inputs(example):
    last = tuple(np.moveaxis(x, 1, -1) if x.ndim == 4 and x.dtype.kind == "f" else x for x in example.inputs)
    return example.options.get("flax_inputs", last)


def bits(arrays):
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("name", SOME)
def test_a_pairs_table_is_complete_and_sure(name):
    example, table = proposed(name)
    assert table.doubts == table.left == ()
    state = random_state(example.torch_module)
    flax = flat_names(table.to_flax(state))
    shapes = {path: a.shape for path, a in flax.items()}
    if isinstance(example.flax_module, nnx.Module):
        shapes = {path.partition("/")[2]: shape for path, shape in shapes.items()}
    assert shapes == flax_shapes(example.flax_module, *own_inputs(example))
    back = table.to_torch(table.to_flax(state))
    added = {entry.torch: entry.torch.replace("bias_hh", "bias_ih") for entry in table.expanded if entry.adds}
    assert bool(added) == ("lstm" in name)
    for bias, other in added.items():
        np.testing.assert_array_equal(back.pop(bias), -0.0)
        np.testing.assert_array_equal(back.pop(other), state.pop(other) + state.pop(bias))
    assert bits(back) == bits(state)


GOLDEN = {
    "lenet5": """Table((
    Entry("conv{1..2}.weight", "Conv_{0..1}/kernel", "o i h w -> h w i o"),
    Entry("conv{1..2}.bias", "Conv_{0..1}/bias", "a -> a"),
    Entry("fc1.weight", "Dense_0/kernel", "o (c h w) -> (h w c) o", sizes={'c': 8, 'h': 2, 'w': 2}),
    Entry("fc{1..3}.bias", "Dense_{0..2}/bias", "a -> a"),
    Entry("fc{2..3}.weight", "Dense_{1..2}/kernel", "o i -> i o"),
))""",
    "gpt": """Table((
    Entry("transformer.wte.weight", "Embed_0/embedding", "v d -> v d"),
    Entry("transformer.wpe.weight", "Embed_1/embedding", "v d -> v d"),
    Entry("transformer.h.{0..2}.ln_{1..2}.weight", "Block_{0..2}/LayerNorm_{0..1}/scale", "a -> a"),
    Entry("transformer.h.{0..2}.ln_{1..2}.bias", "Block_{0..2}/LayerNorm_{0..1}/bias", "a -> a"),
    Entry("transformer.h.{0..2}.attn.c_attn.weight", "Block_{0..2}/MultiHeadDotProductAttention_0/{s=query,key,value}/kernel", "(s o1 o2) i -> s i o1 o2", sizes={'o1': 2, 'o2': 4}),
    Entry("transformer.h.{0..2}.attn.c_attn.bias", "Block_{0..2}/MultiHeadDotProductAttention_0/{s=query,key,value}/bias", "(s a1 a2) -> s a1 a2", sizes={'a1': 2, 'a2': 4}),
    Entry("transformer.h.{0..2}.attn.c_proj.weight", "Block_{0..2}/MultiHeadDotProductAttention_0/out/kernel", "o (i1 i2) -> i1 i2 o", sizes={'i2': 4}),
    Entry("transformer.h.{0..2}.attn.c_proj.bias", "Block_{0..2}/MultiHeadDotProductAttention_0/out/bias", "a -> a"),
    Entry("transformer.h.{0..2}.mlp.c_fc.weight", "Block_{0..2}/Dense_0/kernel", "o i -> i o"),
    Entry("transformer.h.{0..2}.mlp.c_fc.bias", "Block_{0..2}/Dense_0/bias", "a -> a"),
    Entry("transformer.h.{0..2}.mlp.c_proj.weight", "Block_{0..2}/Dense_1/kernel", "o i -> i o"),
    Entry("transformer.h.{0..2}.mlp.c_proj.bias", "Block_{0..2}/Dense_1/bias", "a -> a"),
    Entry("transformer.ln_f.weight", "LayerNorm_0/scale", "a -> a"),
    Entry("transformer.ln_f.bias", "LayerNorm_0/bias", "a -> a"),
    Entry("lm_head.weight", "Embed_0/embedding", "v d -> v d"),
))""",  # noqa: E501
    "gpt_scan": """Table((
    Entry("transformer.wte.weight", "embed/embedding", "v d -> v d"),
    Entry("transformer.wpe.weight", "positions/embedding", "v d -> v d"),
    Entry("transformer.h.{l=0..2}.ln_{1..2}.weight", "blocks/LayerNorm_{0..1}/scale", "l a -> l a"),
    Entry("transformer.h.{l=0..2}.ln_{1..2}.bias", "blocks/LayerNorm_{0..1}/bias", "l a -> l a"),
    Entry("transformer.h.{l=0..2}.attn.c_attn.weight", "blocks/FusedAttention_0/qkv/kernel", "l o i -> l i o"),
    Entry("transformer.h.{l=0..2}.attn.c_attn.bias", "blocks/FusedAttention_0/qkv/bias", "l a -> l a"),
    Entry("transformer.h.{l=0..2}.attn.c_proj.weight", "blocks/FusedAttention_0/out/kernel", "l o i -> l i o"),
    Entry("transformer.h.{l=0..2}.attn.c_proj.bias", "blocks/FusedAttention_0/out/bias", "l a -> l a"),
    Entry("transformer.h.{l=0..2}.mlp.c_fc.weight", "blocks/Dense_0/kernel", "l o i -> l i o"),
    Entry("transformer.h.{l=0..2}.mlp.c_fc.bias", "blocks/Dense_0/bias", "l a -> l a"),
    Entry("transformer.h.{l=0..2}.mlp.c_proj.weight", "blocks/Dense_1/kernel", "l o i -> l i o"),
    Entry("transformer.h.{l=0..2}.mlp.c_proj.bias", "blocks/Dense_1/bias", "l a -> l a"),
    Entry("transformer.ln_f.weight", "norm/scale", "a -> a"),
    Entry("transformer.ln_f.bias", "norm/bias", "a -> a"),
    Entry("lm_head.weight", "embed/embedding", "v d -> v d"),
))""",
    "bilstm": """Table((
    Entry("lstm.weight_ih_l0", "OptimizedLSTMCell_0/i{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.weight_hh_l0", "OptimizedLSTMCell_0/h{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.bias_ih_l0", "OptimizedLSTMCell_0/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}),
    Entry("lstm.bias_hh_l0", "OptimizedLSTMCell_0/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}, adds=True),
    Entry("lstm.weight_ih_l0_reverse", "OptimizedLSTMCell_1/i{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.weight_hh_l0_reverse", "OptimizedLSTMCell_1/h{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.bias_ih_l0_reverse", "OptimizedLSTMCell_1/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}),
    Entry("lstm.bias_hh_l0_reverse", "OptimizedLSTMCell_1/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}, adds=True),
    Entry("lstm.weight_ih_l1", "OptimizedLSTMCell_2/i{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.weight_hh_l1", "OptimizedLSTMCell_2/h{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.bias_ih_l1", "OptimizedLSTMCell_2/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}),
    Entry("lstm.bias_hh_l1", "OptimizedLSTMCell_2/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}, adds=True),
    Entry("lstm.weight_ih_l1_reverse", "OptimizedLSTMCell_3/i{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.weight_hh_l1_reverse", "OptimizedLSTMCell_3/h{s=i,f,g,o}/kernel", "(s o) i -> s i o", sizes={'o': 6}),
    Entry("lstm.bias_ih_l1_reverse", "OptimizedLSTMCell_3/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}),
    Entry("lstm.bias_hh_l1_reverse", "OptimizedLSTMCell_3/h{s=i,f,g,o}/bias", "(s o) -> s o", sizes={'o': 6}, adds=True),
    Entry("out.weight", "Dense_0/kernel", "o i -> i o"),
    Entry("out.bias", "Dense_0/bias", "a -> a"),
))""",  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_table_is_printed_as_one_would_write_it(name):
    assert str(proposed(name)[1]) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_table_carries_what_one_would_write(name):
    written = eval(GOLDEN[name], {"Table": Table, "Entry": Entry})
    state = random_state(EXAMPLES[name]().torch_module)
    assert bits(flat_names(proposed(name)[1].to_flax(state))) == bits(flat_names(written.to_flax(state)))


def test_transposed_convolutions_are_turned_or_not_as_flax_has_them():
    """Flax's own kernel is turned round, with `transpose_kernel` its channels are exchanged instead."""
    entries = {e.torch: (e.flax, e.axes) for e in proposed("unet")[1].expanded}
    assert entries["up1.up.weight"] == ("ConvTranspose_0/kernel", "i o h w -> -h -w i o")
    assert entries["up2.up.weight"] == ("ConvTranspose_1/kernel", "i o h w -> h w o i")


def carried(theirs, ours, *inputs, **options):
    """What the proposed table, which is sure, makes of a random `state_dict`, and that."""
    table = parity.propose(theirs, ours, *inputs, **options)
    assert table.doubts == table.left == ()
    state = random_state(theirs)
    return {path.partition("/")[2]: a for path, a in flat_names(table.to_flax(state)).items()}, state


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
