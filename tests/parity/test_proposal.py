"""Tables that nobody wrote: those of the pairs."""

import functools
import inspect

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import parity
from jaxcnn.files import flat_names
from parity import Entry, Table
from tests.parity.pairs import EXAMPLES, SOME


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
