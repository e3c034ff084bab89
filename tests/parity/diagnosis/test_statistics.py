"""What is kept of running statistics: each mistake is named, with both values, and its repair brings agreement."""

import flax.linen as nn
import jax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from parity import Entry, Table, chain
from parity.diagnosis.statistics import NNX, norms, statistic_findings
from parity.given import Given
from parity.matched import Matched
from tests.parity.pairs.example import floats
from tests.parity.pairs.linen_norm import BatchNorm
from tests.parity.pairs.nnx_norm import BatchNorm as NNXBatchNorm
from tests.parity.small import usual_jax  # noqa: F401


class TorchNorm(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4, **options)

    def forward(self, x):
        return self.norm(x)


class Norm(nn.Module):
    kind: type = BatchNorm
    momentum: float = 0.9
    fixed: bool = False

    @nn.compact
    def __call__(self, x, train):
        average = self.fixed or not train
        return self.kind(use_running_average=average, momentum=self.momentum, use_fast_variance=False, name="norm")(x)


class NNXNorm(nnx.Module):
    def __init__(self, kind, momentum=0.9):
        self.norm = kind(4, momentum=momentum, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)


NORM = Table((
    Entry("norm.weight", "norm/scale", "o -> o"), Entry("norm.bias", "norm/bias", "o -> o"),
    Entry("norm.running_{mean,var}", "norm/{mean,var}", "o -> o", collection="batch_stats"),
))  # fmt: skip


def stepped(flax_module, **options):
    matched = Matched(Given(TorchNorm(**options), flax_module, (floats(12, 4),)), NORM, None, chain.SGD, 1)
    with jax.enable_x64(True):
        list(chain.training(matched, "float64"))
    shown = matched.trained
    return statistic_findings(norms(matched), shown.start, shown.theirs[0], shown.ours)


KEEPS = "Flax keeps 0.99 of the running statistics, PyTorch 0.9 (its momentum 0.1)"
BIASED = "Flax keeps the biased variance of a batch (divided by 12), PyTorch the unbiased one (by 11)"


@pytest.mark.parametrize(
    ("flax_module", "codes", "text"),
    [
        (Norm(), [], ""),
        (Norm(momentum=0.99), ["batch-norm-momentum"], KEEPS),
        (Norm(nn.BatchNorm), ["biased-variance"], BIASED),
        (Norm(nn.BatchNorm, 0.99), ["batch-norm-momentum", "biased-variance"], KEEPS),
        (Norm(fixed=True), ["running-average"], "Flax does not update running statistics in training"),
        (NNXNorm(NNXBatchNorm), [], ""),
        (NNXNorm(nnx.BatchNorm), ["biased-variance"], BIASED),
    ],
)
def test_what_is_kept_of_running_statistics(flax_module, codes, text):
    findings = stepped(flax_module)
    assert [f.code for f in findings] == codes
    assert all(f.certain and f.layer == "norm = norm" for f in findings)
    assert not codes or text in findings[0].text


def test_the_repair_of_a_biased_variance():
    (finding,) = stepped(Norm(nn.BatchNorm))
    exec(finding.repair, scope := {"nn": nn})
    assert stepped(Norm(scope["BatchNorm"])) == []
    exec(NNX, scope := {"nnx": nnx})
    assert stepped(NNXNorm(scope["BatchNorm"])) == []


def test_pytorchs_average_over_all_batches():
    (finding,) = stepped(Norm(momentum=0.5), momentum=None)
    assert finding.code == "batch-norm-momentum"
    assert "Flax keeps 0.5 of the running statistics, PyTorch 0 (its momentum 1)" in finding.text


def test_other_statistics_are_unknown():
    start, ours = ({f"norm.running_{k}": floats(8, 4)[s] for k in ("mean", "var")} for s in (0, 1))
    (layer,) = norms(Matched(Given(TorchNorm(), Norm(), (floats(12, 4),)), NORM, None, chain.SGD, 1)).items()
    (finding,) = statistic_findings(dict([layer]), start, {n: a * 2 for n, a in start.items()}, ours)
    assert (finding.code, finding.certain) == ("unknown", False)
    assert "4 of 4 channels" in finding.text


class OwnNorm(torch.nn.Module):
    """A batch norm that a user wrote: its momentum is nowhere to be read."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, self.bias, self.training)


def test_a_norm_of_the_users_own_is_none_of_pytorchs():
    module = torch.nn.Sequential(OwnNorm())
    port = nn.BatchNorm(momentum=0.9, use_scale=False)
    assert norms(Matched(Given(module, port, (floats(12, 4),)), None, None, chain.SGD, 1)) == {}
