"""Initial weights of another distribution: both are said, and the repair brings agreement."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxcnn import UserError
from parity.checking import _check_arguments
from parity.diagnosis.initial import initial_findings
from parity.given import Given
from parity.initial import draw_initial, initial_checks
from tests.parity.pairs.example import floats
from tests.parity.small import TINY, FlaxTiny, Tiny, tiny, usual_jax  # noqa: F401
from tests.parity.test_checking import NNXTiny

GIVEN = Given(Tiny(), FlaxTiny(), (floats(6, 4),))
DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bounded(size):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -(size**-0.5), size**-0.5)


def flax_tiny(one, two, kernels=(DEFAULT, DEFAULT)):
    class Made(FlaxTiny):
        def setup(self):
            self.one = nn.Dense(5, kernel_init=kernels[0], bias_init=one)
            self.two = nn.Dense(3, kernel_init=kernels[1], bias_init=two)

    return lambda seed: Made()


def drawn(ours, theirs=lambda seed: Tiny(), given=GIVEN):
    return initial_findings((theirs, ours), given, TINY)


def test_initial_weights_of_one_distribution_have_no_finding():
    assert drawn(flax_tiny(bounded(4), bounded(5))) == []
    assert [
        c.passed
        for c in initial_checks(draw_initial((lambda s: Tiny(), flax_tiny(bounded(4), bounded(5))), GIVEN, TINY))
    ] == [True] * 4


def test_other_initial_weights_are_said_and_repaired():
    findings = drawn(
        flax_tiny(
            nn.initializers.zeros, nn.initializers.zeros, (nn.initializers.lecun_normal(), nn.initializers.normal(0.02))
        )
    )
    assert {f.code for f in findings} == {"initialisation"}
    assert all(f.certain for f in findings)
    texts = {f.layer: f.text for f in findings}
    words = "uniform ±0.5 = 1 / sqrt(fan_in) in PyTorch, normal cut off at 2 std, std 0.5"
    assert texts["one.weight = one/kernel"].startswith(words)
    assert texts["two.weight = two/kernel"].endswith("in PyTorch, normal, std 0.02 in Flax")
    assert texts["two.bias = two/bias"] == "uniform ±0.45 = 1 / sqrt(fan_in) in PyTorch, zeros in Flax"
    repairs = {f.layer: eval(f.repair.partition("=")[2], {"nn": nn, "jnp": jnp, "jax": jax}) for f in findings}
    one, two = (repairs[f"{layer}.bias = {layer}/bias"] for layer in ("one", "two"))
    kernels = tuple(repairs[f"{layer}.weight = {layer}/kernel"] for layer in ("one", "two"))
    assert drawn(flax_tiny(one, two, kernels)) == []


class Normal(Tiny):
    def __init__(self):
        super().__init__()
        for p in self.parameters():
            torch.nn.init.normal_(p, 0, 0.02) if p.ndim > 1 else torch.nn.init.constant_(p, 0.1)


def test_a_normal_distribution_and_a_constant():
    repairs = {f.layer: f.repair for f in drawn(flax_tiny(bounded(4), bounded(5)), lambda seed: Normal())}
    assert repairs["one.weight = one/kernel"] == "kernel_init=nn.initializers.normal(0.02)"
    assert repairs["one.bias = one/bias"] == "bias_init=nn.initializers.constant(0.1)"
    constant = nn.initializers.constant(0.1)
    normal = nn.initializers.normal(0.02)
    assert drawn(flax_tiny(constant, constant, (normal, normal)), lambda seed: Normal()) == []


def test_initial_weights_of_nnx():
    given = Given(Tiny(), NNXTiny(nnx.Rngs(0)), (floats(6, 4),))
    findings = drawn(lambda seed: NNXTiny(nnx.Rngs(seed)), lambda seed: Normal(), given)
    assert {f.layer: f.repair for f in findings}["one.bias = one/bias"] == "bias_init=nnx.initializers.constant(0.1)"
    assert "the same numbers in each draw in Flax" in str(drawn(lambda seed: NNXTiny(nnx.Rngs(0)), given=given))


def test_check_compares_initial_weights_where_it_is_asked_to():
    report = tiny(table=TINY, train=False, initial=(lambda seed: Tiny(), lambda seed: FlaxTiny()))
    assert {c.link for c in report.failed} == {"initial"}
    assert {c.tensor for c in report.failed} >= {"one.bias = one/bias", "two.bias = two/bias"}
    with pytest.raises(UserError, match="initial= is Tiny"):
        _check_arguments(None, None, None, Tiny(), 1, ("float64",))
    with pytest.raises(UserError, match="it makes no module of this pair"):
        drawn(lambda seed: FlaxTiny(), lambda seed: torch.nn.Linear(4, 5))
    with pytest.raises(UserError, match="it fails: TypeError"):
        drawn(lambda: FlaxTiny())
