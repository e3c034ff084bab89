"""What `check` does to what it is given: nothing; what it says of bad input."""

import re
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
import parity.__main__ as command
from jaxcnn import UserError
from tests.conftest import ROOT
from tests.parity.pairs.example import floats
from tests.parity.small import IMAGES, VECTORS, FlaxTiny, Network, Tiny, TorchNetwork, checked, tiny, usual_jax  # noqa: F401


class Noted(TorchNetwork):
    """One that fails in training, in its second half."""

    fails = False

    def forward(self, x):
        output = super().forward(x)
        if self.fails and self.training:
            raise RuntimeError("not in training")
        return output


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.fc, self.head = nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x))))
        return self.head(nnx.gelu(self.fc(x.reshape(len(x), -1)), approximate=False))


def everything(module, flax_module, inputs):
    """What a call might change, in a form that can be compared."""
    copied = lambda t: None if t is None else t.detach().tolist()  # noqa: E731
    tensors = module.state_dict(keep_vars=True)
    pure = nnx.to_flat_state(nnx.state(flax_module))
    return [
        {name: (copied(t), t.dtype, t.requires_grad, copied(t.grad)) for name, t in tensors.items()},
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), {*vars(m)}) for m in module.modules()],
        (copied(torch.get_rng_state()), torch.get_default_dtype(), torch.is_grad_enabled()),
        (jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion),
        ([x.tolist() for x in inputs], np.random.get_state()[1].tolist()),  # noqa: NPY002 (whoever still uses it)
        (flax_module.drop.deterministic, flax_module.norm.use_running_average, vars(nnx.Linear)["__call__"]),
        [(path, str(v.dtype), str(v.get_value())) for path, v in pure],
    ]


@pytest.mark.parametrize("fails", ["", "in training", "in the loss", "in the optimizer"])
def test_nothing_is_changed_also_if_it_fails(fails):
    module, flax_module, inputs = Noted(), NNXNetwork(nnx.Rngs(0)), (IMAGES.copy(),)
    module.fails = fails == "in training"
    module.norm.eval()  # a mixture of modes
    module.fc.bias.requires_grad_(False)
    module(torch.tensor(IMAGES)).sum().backward() if not module.fails else None
    before = everything(module, flax_module, inputs)

    def fail(*_):
        raise RuntimeError("not this")

    options = {
        "in the loss": {"loss": (lambda output: output.sum(), fail)},
        "in the optimizer": {"optimizer": (fail, optax.sgd(0.1))},
    }.get(fails, {})
    try:
        parity.check(module, flax_module, *inputs, precision=("float64",), steps=2, **options)
    except (RuntimeError, UserError) as problem:
        assert fails, problem  # noqa: PT017
    else:
        assert not fails
    assert everything(module, flax_module, inputs) == before


def words_of(module, flax_module, *inputs, **options):
    with pytest.raises(UserError) as raised:
        parity.check(module, flax_module, *inputs, **{"precision": ("float64",), "steps": 2, **options})
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


class Raising(nn.Module):
    """One whose call fails, always or in one mode."""

    mode: bool | None = None

    @nn.compact
    def __call__(self, x, train):
        if self.mode in (None, train):
            raise ValueError("Flax's own\nwords")
        return nn.Dense(3, name="two")(nn.tanh(nn.Dense(5, name="one")(x)))


class Scale(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_what_is_no_module_is_refused():
    """In a process of its own, for here annotations are checked, and that of the first is stricter than the message."""
    program = """
import torch, flax.linen, parity
from jaxcnn import UserError
for pair in ((len, flax.linen.Dense(3)), (torch.nn.Linear(4, 3), len)):
    try:
        parity.check(*pair)
    except UserError as problem:
        print(problem)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("not a PyTorch module: builtin_function_or_method; ")
    assert second.startswith("neither a Linen nor an NNX module: builtin_function_or_method; ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    assert "half precision (one.weight): Tiny" in words_of(Tiny().to(dtype), FlaxTiny(), VECTORS)


def test_inputs_that_do_not_fit_are_told_in_the_frameworks_own_words():
    text = words_of(Tiny(), FlaxTiny(), floats(6, 3))
    assert "mat1 and mat2 shapes cannot be multiplied (6x3 and 4x5)" in text
    assert "Tiny(float32[6, 3])" in text
    text = words_of(Tiny(), FlaxTiny())
    assert "missing 1 required positional argument" in text
    text = words_of(Tiny(), FlaxTiny(), VECTORS, flax_inputs=(VECTORS, VECTORS))
    assert "FlaxTiny(float32[6, 4], float32[6, 4])" in text
    assert "takes 2 positional arguments but 3 were given" in text


def test_a_flax_module_whose_call_fails():
    text = words_of(Tiny(), Raising(), VECTORS)
    assert "ValueError: Flax's own words: Raising(float32[6, 4])" in text


def test_a_pytorch_module_whose_call_fails_in_training_only():
    module = Noted()
    module.fails = True
    assert "RuntimeError: not in training: Noted(float32[3, 2, 8, 8])" in words_of(module, Network(), IMAGES)


def test_a_flax_module_whose_call_fails_in_training_only():
    assert "Flax's own words: Raising" in words_of(Tiny(), Raising(True), VECTORS)


class Twice(nn.Module):
    def __call__(self, x):
        return 2 * x


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(9)(x)


def test_modules_without_parameters():
    text = words_of(Scale(), Twice(), VECTORS)
    assert text.startswith("neither module has parameters: Scale and Twice")


def test_weights_and_inputs_that_are_no_numbers():
    module = Tiny()
    module.two.weight.data[0, 0] = float("inf")
    assert words_of(module, FlaxTiny(), VECTORS).startswith("two.weight holds NaN or infinity: Tiny; ")
    assert words_of(Tiny(), FlaxTiny(), VECTORS * np.nan).startswith("an input holds NaN: Tiny; ")


@pytest.mark.parametrize(("theirs", "ours"), [(Tiny, Wide), (Scale, FlaxTiny)])
def test_modules_of_which_no_layer_has_a_counterpart(theirs, ours):
    text = words_of(theirs(), ours(), VECTORS)
    assert "the modules cannot be matched" in text
    assert f"{theirs.__name__} and {ours.__name__}" in text


def test_layers_without_a_counterpart_fail_by_their_names():
    report = tiny(FlaxTiny(7), train=False)
    assert not report.passed
    assert report.first.link == "weights"
    assert all("counterpart" in str(c) for c in report.failed if c.link == "weights")


class Noisy(Tiny):
    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(3, dtype=x.dtype)


class FlaxNoisy(FlaxTiny):
    def __call__(self, x):
        return super().__call__(x) + 0.01 * jax.random.normal(self.make_rng("dropout"), (3,))


def test_noise_in_evaluation_is_refused():
    assert "two calls in evaluation differ: FlaxNoisy" in words_of(Tiny(), FlaxNoisy(), VECTORS)


def test_noise_of_pytorch_in_evaluation_is_refused():
    assert "two calls in evaluation differ: Noisy" in words_of(Noisy(), FlaxTiny(), VECTORS)


def test_a_strict_jax_is_no_hindrance():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert checked(Network()).passed


def broken():
    raise ValueError("no such\nfile")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("tests.parity.test_arguments", "no colon in it"),
        ("tests.parity.nowhere:build", "No module named 'tests.parity.nowhere'"),
        ("tests.parity.test_arguments:nobody", "has no attribute 'nobody'"),
        ("tests.parity.test_arguments:broken", "it fails: ValueError: no such file"),
        ("tests.parity.test_arguments:words_of", "missing 2 required positional arguments"),
    ],
)
def test_a_builder_that_cannot_be_called_is_one_line(where, words, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        command.call(where)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)
