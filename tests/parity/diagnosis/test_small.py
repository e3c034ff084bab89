"""Wrong ports of two or three layers, as a newcomer tried them: what is said of each."""

import flax.linen as nn
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F

import parity
from tests.parity.pairs.example import floats, tokens
from tests.parity.small import usual_jax  # noqa: F401


class Between(torch.nn.Module):
    """Two dense layers, and a function between."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = torch.nn.Linear(6, 6), torch.nn.Linear(6, 3), function

    def forward(self, x):
        return self.b(self.function(x, self.a))


class Port(nn.Module):
    """Its port, whatever is between."""

    function: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(self.function(x, nn.Dense(6, name="a")))


def said(torch_module, flax_module, *inputs):
    return parity.check(torch_module, flax_module, *inputs, precision=("float64",), train=False)


@pytest.mark.parametrize(
    ("theirs", "ours", "code", "repair"),
    [
        (lambda x, a: F.relu6(a(x)), lambda x, a: nn.relu(a(x)), "activation", "nn.relu6(x)"),
        (lambda x, a: F.celu(a(x), 2), lambda x, a: nn.relu(a(x)), "activation", "nn.celu(x, alpha=2)"),
        (lambda x, a: F.hardtanh(a(x), -3, 3), lambda x, a: a(x), "activation-missing", "jnp.clip(x, -3, 3)"),
        (lambda x, a: F.mish(a(x)), lambda x, a: a(x), "activation-missing", "jax.nn.mish(x)"),
        (lambda x, a: x + 0.5 * a(x), lambda x, a: x + a(x), "scale", "x * 0.5"),
        (lambda x, a: a(x), lambda x, a: a(x) * 1.0000001, "scale", "leave the factor out"),
        (
            lambda x, a: F.adaptive_max_pool1d(torch.cat([a(x), x[:, :2]], 1)[:, None], 6)[:, 0],
            lambda x, a: nn.max_pool(jnp.concatenate([a(x), x[:, :2]], 1)[..., None], (3,))[..., 0],
            "pooling-kind",
            "for each i the maximum of x[:, i * n // out : -(-(i + 1) * n // out)], n the size and out PyTorch's",
        ),
        (
            lambda x, a: (
                F.adaptive_avg_pool2d(a(x).reshape(-1, 1, 2, 3), (2, 2))[:, 0, :, :1].repeat(1, 1, 3).flatten(1)
            ),
            lambda x, a: nn.max_pool(a(x).reshape(-1, 2, 3, 1), (1, 2))[:, :, :1, 0].repeat(3, 2).reshape(len(x), -1),
            "pooling-kind",
            "for each i the mean of x[:, i * n // out : -(-(i + 1) * n // out)], n the size and out PyTorch's",
        ),
    ],
)
def test_the_function_between_two_layers(theirs, ours, code, repair):
    report = said(Between(theirs), Port(ours), floats(8, 6))
    (finding,) = report.diagnosis
    assert (finding.code, finding.repair, finding.certain) == (code, repair, True), report
    assert "by 1," not in finding.text


def test_a_small_error_that_follows_the_values_is_no_rounding():
    (finding,) = said(Between(lambda x, a: a(x)), Port(lambda x, a: a(x) + 1e-3 * a(x) ** 3), floats(8, 6)).diagnosis
    assert finding.code == "unknown"


def test_weights_that_are_not_shared_are_told():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11, bias=False)
            self.h.weight = self.e.weight

        def forward(self, x):
            return self.h(torch.tanh(self.e(x)))

    class Untied(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(11, use_bias=False)(nn.tanh(nn.Embed(11, 6)(x)))

    report = said(Tied(), Untied(), tokens(11, 3, 5))
    (finding,) = report.diagnosis
    assert (finding.code, finding.layer, finding.certain) == ("layer-twice", "e.weight", True)
    assert not report.passed


def test_an_output_that_is_true_or_false():
    class Signs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(6, 3)

        def forward(self, x):
            y = self.a(x)
            return y, y > 0

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(3)(x)
            return y, y < 0

    report = said(Signs(), Other(), floats(8, 6))
    assert {finding.code for finding in report.diagnosis} == {"unknown"}, report


def test_a_search_that_fails_leaves_the_report(monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr("parity.checking.diagnose", fails)
    report = said(Between(lambda x, a: a(x)), Port(lambda x, a: jnp.tanh(a(x))), floats(8, 6))
    assert "ZeroDivisionError: nobody foresaw it" in report.diagnosis[0].text
    assert report.first is not None
