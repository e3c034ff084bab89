"""An array that was converted by hand: what was done to it is named."""

from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from einops import rearrange

from jaxcnn.files import flat_names
from parity import Entry, Table
from parity.diagnosis.conversions import Variable, causes
from parity.diagnosis.shuffles import row_order, words
from parity.matched import Matched
from tests.parity.small import usual_jax  # noqa: F401

RNG = np.random.default_rng(3)
AXES, TURNED, FLIPPED, FLATTEN = "kernel-axes", "kernel-not-transposed", "kernel-flipped", "flatten-order"
MISSING, SHUFFLED = "weights-missing", "weights-shuffled"
DENSE, CONV = "o i -> i o", "o i h w -> h w i o"
T = torch.nn


def variable(module, axes, spoil, sizes=None, merges=None, flax="x/kernel", rest=None):
    """The variable that the pattern makes of the module's weight, spoilt."""
    state = {"weight": RNG.normal(size=module.weight.shape)}
    entry = Entry("weight", flax, axes, sizes or {})
    right = next(iter(flat_names(Table((entry,)).to_flax(state)).values()))
    first = lambda: {"params/x/kernel": np.full(right.shape, 0.25)}  # noqa: E731
    others = {"params/x/kernel": right, **(rest or {})}
    return Variable(entry, entry, spoil(right), right, others, first, (), state, module, merges or {})


def stub(**known):
    """A matched pair of which no more is known."""
    matched = object.__new__(Matched)
    matched.__dict__.update(doubted=set(), traces=[SimpleNamespace(merges={})], **known)
    return matched


def grouped(out, groups):
    return T.Conv2d(groups, out, 3, groups=groups)


def blocks(*order, axis=-1):
    return lambda a: np.concatenate([np.split(a, len(order), axis)[i] for i in order], axis)


def turned(shape):
    """Rows of the first axis as if (a b c) were (b a c)."""
    return lambda a: a.reshape(*shape, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)


def half(dtype):
    return lambda a: a.astype(np.float32).astype(dtype).astype(float)


FLAT = {"merges": {12: {(3, 2, 2)}}}
IMAGE = "o (c h w) -> (h w c) o"
ROWS = {
    "not transposed": (T.Linear(3, 5), DENSE, np.transpose, TURNED, "o i -> o i"),
    "square, not transposed": (T.Linear(4, 4), DENSE, np.transpose, TURNED, "o i -> o i"),
    "reshaped": (T.Linear(3, 5), DENSE, lambda a: a.T.reshape(a.shape), AXES, "reshaped to [3, 5]"),
    "as transposed by GPT-2": (T.Linear(3, 5), "o i -> o i", np.transpose, AXES, "o i -> i o"),
    "heads, reshaped": (T.Linear(3, 8), "(h d) i -> i h d", lambda a: rearrange(a, "i h d -> (h d i)").reshape(a.shape),
                        AXES, "reshaped", {"h": 2}),
    "heads, square": (T.Linear(4, 4), "(h d) i -> i h d", lambda a: rearrange(a, "i h d -> (h d) i").reshape(4, 2, 2),
                      TURNED, "", {"h": 2}),
    "heads last": (T.Linear(3, 8), "(h d) i -> i h d", lambda a: rearrange(a, "i h d -> i d h"), AXES,
                   "(h d) i -> i d h", {"h": 2}),
    "heads in one": (T.Linear(3, 8), "(h d) i -> i h d", lambda a: a.reshape(3, 8), AXES, "(h d) i -> i (h d)",
                     {"h": 2}),
    "out of heads": (T.Linear(8, 3), "o (h d) -> h d o", lambda a: a.swapaxes(0, 1), AXES, "-> d h o", {"h": 2}),
    "height and width": (T.Conv2d(2, 3, 4), CONV, lambda a: a.swapaxes(0, 1), AXES, "o i h w -> w h i o; right is"),
    "in and out": (T.Conv2d(3, 3, 2), CONV, lambda a: a.swapaxes(2, 3), AXES, "-> h w o i"),
    "as PyTorch has it": (T.Conv2d(2, 3, 4), CONV, lambda a: a.transpose(3, 2, 0, 1), AXES, "-> o i h w"),
    "kernel reshaped": (T.Conv2d(2, 3, 4), CONV, lambda a: a.transpose(3, 2, 0, 1).reshape(a.shape), AXES, "reshaped"),
    "of one tap": (T.Conv2d(3, 3, 1), CONV, lambda a: a.swapaxes(2, 3), AXES, "o i h w -> h w o i"),
    "1-d": (T.Conv1d(2, 2, 2), "o i w -> w i o", lambda a: a.swapaxes(0, 2), AXES, "o i w -> o i w"),
    "3-d": (T.Conv3d(2, 3, 2), "o i d h w -> d h w i o", lambda a: a.swapaxes(0, 1), AXES, "-> h d w i o"),
    "patches": (T.Conv2d(3, 5, 2), "o i h w -> (h w i) o", lambda a: rearrange(a, "(h w i) o -> (i h w) o", h=2, w=2),
                AXES, "-> (i h w) o"),
    "flipped": (T.Conv2d(2, 3, 3), CONV, lambda a: a[::-1, ::-1], FLIPPED, "-> -h -w i o"),
    "one axis flipped": (T.Conv1d(2, 3, 3), "o i w -> w i o", lambda a: a[::-1], FLIPPED, "-> -w i o"),
    "not flipped": (T.ConvTranspose2d(2, 3, 3), "i o h w -> -h -w i o", lambda a: a[::-1, ::-1], FLIPPED,
                    "-> h w i o; right is i o h w -> -h -w i o"),
    "not flipped, swapped": (T.ConvTranspose2d(3, 3, 3), "i o h w -> -h -w i o",
                             lambda a: a[::-1, ::-1].swapaxes(2, 3), FLIPPED, "-> h w o i"),
    "transposed, swapped": (T.ConvTranspose2d(3, 3, 3), "i o h w -> -h -w i o", lambda a: a.swapaxes(2, 3), AXES,
                            "-> -h -w o i"),
    "after a flatten": (T.Linear(12, 5), IMAGE, lambda a: rearrange(a, "(h w c) o -> (c h w) o", h=2, w=2), FLATTEN,
                        "-> (c h w) o", {"h": 2, "w": 2}),
    "after a flatten, w first": (T.Linear(12, 5), IMAGE, lambda a: rearrange(a, "(h w c) o -> (w h c) o", h=2, w=2),
                                 FLATTEN, "-> (w h c) o", {"h": 2, "w": 2}),
    "turned for nothing": (T.Linear(12, 5), DENSE, lambda a: rearrange(a, "(c h w) o -> (h w c) o", h=2, w=2), FLATTEN,
                           "-> (h w c) o; right is o (c h w) -> (c h w) o", {}, FLAT),
    "a flatten, not transposed": (T.Linear(12, 5), IMAGE, lambda a: rearrange(a, "(h w c) o -> o (c h w)", h=2, w=2),
                                  TURNED, "", {"h": 2, "w": 2}),
    "gates": (T.Linear(3, 8), DENSE, blocks(2, 0, 1, 3), SHUFFLED, "along axis 1 are in 4 blocks of 2, in the order 2"),
    "by head": (T.Linear(3, 12), "(h s d) i -> i (s h d)", lambda a: rearrange(a, "i (s h d) -> i (h s d)", s=3, h=2),
                SHUFFLED, "(h s d) i -> i (h s d)", {"s": 3, "h": 2}),
    "interleaved": (T.Linear(12, 5), DENSE, turned((3, 4, 1)), SHUFFLED, "axis 0 are of (3 4 1) in the order of (4 3"),
    "any rows": (T.Embedding(11, 2), "v d -> v d", lambda a: a[[3, 1, 2, 0, *range(4, 11)]], SHUFFLED,
                 "right but for 0, 3, which are 3, 0"),
    "a kernel's outputs": (T.Conv2d(2, 4, 3), CONV, blocks(1, 0), SHUFFLED, "axis 3"),
    "groups": (grouped(6, 3), CONV, blocks(2, 0, 1), "groups", "its 3 groups are in 3 blocks of 2, in the order 2, 0"),
    "groups interleaved": (grouped(6, 3), CONV, lambda a: rearrange(a, "h w i (a b) -> h w i (b a)", a=3), "groups",
                           "in the order 0, 2, 4, 1, 3, 5"),
    "depthwise": (grouped(5, 5), CONV, lambda a: a[..., [1, 0, 2, 3, 4]], "groups", ""),
    "not by groups": (grouped(6, 2), CONV, lambda a: a[..., [1, 0, 2, 3, 4, 5]], SHUFFLED, ""),
    "1 less": (T.Linear(3, 5), DENSE, lambda a: a - 1, "scale-offset", "1 was subtracted"),
    "1 more": (T.Linear(3, 5), DENSE, lambda a: a + 1, "scale-offset", "1 was added"),
    "a factor": (T.Linear(3, 5), DENSE, lambda a: a * 0.125, "scale", "0.125 times"),
    "bfloat16": (T.Linear(3, 5), DENSE, half(ml_dtypes.bfloat16), "precision", "bfloat16"),
    "float16": (T.Linear(3, 5), DENSE, half(np.float16), "precision", "rounded to float16"),
    "zeros": (T.Linear(3, 5), DENSE, np.zeros_like, MISSING, "all zeros"),
    "ones": (T.Linear(3, 5), DENSE, np.ones_like, MISSING, "all ones"),
    "as drawn": (T.Linear(3, 5), DENSE, lambda a: np.full_like(a, 0.25), MISSING, "as Flax draws it first"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_was_done_to_an_array_is_named_and_repaired(name):
    module, axes, spoil, code, words, *rest = ROWS[name]
    one = variable(module, axes, spoil, *rest[:1], **(rest[1] if len(rest) > 1 else {}))
    found = [*causes(one)]
    assert {c.code for c in found} == {code}
    assert found[0].certain
    assert words in found[0].text
    if "table." not in found[0].repair:
        repaired = {"weight": one.state["weight"], "np": np, "rearrange": rearrange}
        exec(found[0].repair, repaired)
        np.testing.assert_array_equal(repaired["kernel"], one.made)


@pytest.mark.parametrize("name", ["kernel-axes", "kernel-not-transposed"])
def test_slices_and_stacks(name):
    """Fused projections that Flax has apart, and layers that it has in one."""
    one = variable(T.Linear(4, 12), "(s o) i -> s i o", np.asarray, flax="{s=q,k,v}/kernel")
    swapped = name == "kernel-not-transposed"
    spoilt = one.made.T if swapped else one.made.reshape(2, 8)
    found = [*causes(replace(one, given=spoilt))]
    assert {c.code for c in found} == {name}
    assert found[0].repair == "variables = table.to_flax(module.state_dict())"
    assert ("i -> o i" if swapped else "reshaped to [2, 8]") in found[0].text


def test_another_array_an_unlike_one_and_an_unknown_one():
    other = RNG.normal(size=(6, 8))
    make = lambda spoil: [*causes(variable(T.Linear(6, 8), DENSE, spoil, rest={"params/y/kernel": other}))]  # noqa: E731
    (cause,) = make(lambda a: other)
    assert (cause.code, cause.text) == (SHUFFLED, "it is y/kernel's")
    (cause,) = make(lambda a: RNG.normal(size=a.shape))
    assert (cause.code, cause.certain) == (MISSING, False)
    (cause,) = make(lambda a: np.where(np.arange(8) == 2, a + 0.5, a))
    assert (cause.code, cause.certain) == ("unknown", False)
    assert "only in axis-1 index 2" in cause.text
    (cause,) = make(lambda a: a[:3])
    assert (cause.code, cause.text) == ("unknown", "it has shape [3, 8], where [6, 8] is right")
    (cause,) = make(lambda a: 2 * a.T.reshape(a.shape))  # two mistakes: it was carried
    assert cause.code == "unknown"


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([2, 1, 0], "in reverse order"),
        ([4, 5, 0, 1, 2, 3], "in 3 blocks of 2, in the order 2, 0, 1"),
        ([0, 3, 1, 4, 2, 5], "in the order 0, 3, 1, 4, 2, 5"),
        ([0, 5, 1, 6, 2, 7, 3, 8, 4, 9], "of (2 5 1) in the order of (5 2 1)"),
        ([*range(4), 5, 4, *range(6, 20)], "right but for 4, 5, which are 5, 4"),
        ([5 * b + i for b in range(11) for i in (2, 0, 4, 1, 3)], "in each of 11 blocks in the order 2, 0, 4, 1, 3"),
        ([*np.random.default_rng(0).permutation(97)], "in the order"),
    ],
)
def test_an_order_of_rows_in_words(order, said):
    made = RNG.normal(size=(len(order), 3))
    found = row_order(made[order], made, 0)
    assert found.tolist() == order
    assert words(found).startswith(said)
    assert row_order(made + np.eye(len(made), 3), made, 0) is None
