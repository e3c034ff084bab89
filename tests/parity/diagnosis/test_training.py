"""Training's classic mistakes: each is named, with both values, and its repair brings agreement."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from jaxcnn import UserError
from parity import Entry, Table, chain
from parity.checking import _check_arguments
from parity.diagnosis.initial import initial_findings
from parity.diagnosis.losses import loss_findings
from parity.diagnosis.optimizers import optimizer_findings
from parity.diagnosis.statistics import NNX, norms, statistic_findings
from parity.given import Given
from parity.initial import draw_initial, initial_checks
from parity.matched import Matched
from tests.parity.pairs.example import floats
from tests.parity.pairs.linen_norm import BatchNorm
from tests.parity.pairs.nnx_norm import BatchNorm as NNXBatchNorm
from tests.parity.small import FlaxTiny, Tiny, clipped, tiny, usual_jax  # noqa: F401
from tests.parity.test_checking import OPTIMIZERS, NNXTiny, scheduled

PARAMETERS = {name: p.detach().numpy() for name, p in Tiny().named_parameters()}
TINY = Table((
    Entry("{one,two}.weight", "{one,two}/kernel", "o i -> i o"), Entry("{one,two}.bias", "{one,two}/bias", "o -> o"),
))  # fmt: skip


def sgd(**options):
    return lambda p: torch.optim.SGD(p, **{"lr": 0.01, "momentum": 0.9, **options})


def adam(kind=torch.optim.Adam, **options):
    return lambda p: kind(p, lr=0.01, **options)


def rmsprop(p):
    return torch.optim.RMSprop(p, lr=0.01)


def adagrad(p):
    return torch.optim.Adagrad(p, lr=0.1, eps=0)


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def only_matrices(p):
    p = list(p)
    groups = [{"params": [q for q in p if q.ndim < 2], "weight_decay": 0.0}, {"params": [q for q in p if q.ndim > 1]}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def value_clipped(p):
    p = list(p)
    optimizer = torch.optim.SGD(p, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(p, 0.5))
    return optimizer


def uncorrected():
    """Adam long after its first step: nothing is left to be corrected."""
    kind = optax.scale_by_adam()
    return optax.GradientTransformation(lambda p: kind.init(p)._replace(count=jnp.int32(10**8)), kind.update)


def decayed(decay, *others):
    return optax.chain(optax.add_decayed_weights(decay), *others)


def flax_sgd(rate=0.01, momentum=0.9, **options):
    return optax.sgd(rate, momentum=momentum, **options)


BY_NORM, BY_VALUE = optax.clip_by_global_norm, optax.clip
W = torch.optim.AdamW
# name: PyTorch's, optax's, the code, both values as they are said
MISTAKES = {
    "rate": (sgd(), flax_sgd(0.02), "learning-rate", "Flax uses learning rate 0.02, PyTorch 0.01"),
    "rate of AdamW": (adam(W), optax.adamw(3e-4, weight_decay=0.01), "learning-rate", "rate 0.0003, PyTorch 0.01"),
    "momentum": (sgd(), flax_sgd(momentum=0.85), "momentum", "Flax uses momentum 0.85, PyTorch 0.9"),
    "no momentum": (sgd(), optax.sgd(0.01), "momentum", "Flax uses momentum 0, PyTorch 0.9"),
    "dampening": (sgd(dampening=0.5), flax_sgd(), "dampening", "Flax uses dampening 0, PyTorch 0.5"),
    "no nesterov": (sgd(nesterov=True), flax_sgd(), "nesterov", "no Nesterov momentum, PyTorch does"),
    "nesterov": (sgd(), flax_sgd(nesterov=True), "nesterov", "Nesterov momentum, PyTorch does not"),
    "no decay": (sgd(weight_decay=5e-4), flax_sgd(), "weight-decay", "decay 0, PyTorch 0.0005"),
    "decay": (sgd(weight_decay=5e-4), decayed(3e-4, flax_sgd()), "weight-decay", "decay 0.0003, PyTorch 0.0005"),
    "decay of AdamW": (adam(W), optax.adamw(0.01), "weight-decay", "decay 0.0001, PyTorch 0.01"),
    "decoupled": (adam(weight_decay=0.01), optax.adamw(0.01, weight_decay=0.01), "weight-decay",
                  "0.01, apart from the gradient, PyTorch 0.01, added to the gradient"),
    "coupled": (adam(W), decayed(0.01, optax.adam(0.01)), "weight-decay",
                "0.01, added to the gradient, PyTorch 0.01, apart from the gradient"),
    "decoupled SGD": (sgd(weight_decay=0.01), optax.chain(optax.trace(0.9), decayed(0.01, optax.scale(-0.01))),
                      "weight-decay", "0.01, apart from the gradient, PyTorch 0.01, added to the gradient"),
    "decays all": (only_matrices, optax.adamw(0.01, weight_decay=0.1), "weight-decay",
                   "0.1 of all parameters, PyTorch 0.1 of parameters of two or more axes"),
    "decays matrices": (adam(W), optax.adamw(0.01, weight_decay=0.01, mask=matrices), "weight-decay",
                        "0.01 of parameters of two or more axes, PyTorch 0.01 of all parameters"),
    "epsilon": (adam(), optax.adam(0.01, eps=1e-7), "adam-epsilon", "Flax uses epsilon 1e-07, PyTorch 1e-08"),
    "in the root": (rmsprop, optax.rmsprop(0.01, decay=0.99), "adam-epsilon",
                    "Flax adds 1e-08 inside the root, PyTorch epsilon 1e-08 outside it"),
    "Adagrad": (adagrad, optax.adagrad(0.1), "adam-epsilon", "Flax adds 0.1000001 inside the root, PyTorch epsilon 0"),
    "alpha": (rmsprop, optax.rmsprop(0.01, eps_in_sqrt=False), "momentum", "(PyTorch's alpha) 0.9, PyTorch 0.99"),
    "bias": (adam(), optax.chain(uncorrected(), optax.scale(-0.01)), "bias-correction", "does not correct the bias"),
    "beta2": (adam(), optax.adam(0.01, b2=0.98), "momentum", "Flax uses b2 0.98, PyTorch beta2 0.999"),
    "beta1": (adam(betas=(0.5, 0.999)), optax.adam(0.01), "momentum", "Flax uses b1 0.9, PyTorch beta1 0.5"),
    "no clipping": (clipped, optax.sgd(0.1), "clipping",
                    "Flax does not clip, PyTorch clips the norm of all gradients at 0.1"),
    "clipping": (clipped, optax.chain(BY_NORM(0.1), optax.sgd(0.1)), "clipping",
                 "at 0.1, PyTorch clips the norm of all gradients at 0.1 (1e-6 added to it)"),
    "clips more": (clipped, optax.chain(BY_NORM(0.07), optax.sgd(0.1)), "clipping",
                   "Flax clips the norm of all gradients at 0.07"),
    "clips": (adam(), optax.chain(BY_NORM(1.0), optax.adam(0.01)), "clipping", "at 1, PyTorch does not clip"),
    "clips values": (sgd(), optax.chain(BY_VALUE(2.0), flax_sgd()), "clipping",
                     "each element of the gradients at 2, PyTorch does not"),
    "value clipping": (value_clipped, optax.sgd(0.1), "clipping", "PyTorch clips each element of the gradients at 0.5"),
    "no schedule": (scheduled, flax_sgd(0.1), "schedule", "is 0.1, 0.1, 0.1, 0.1, PyTorch's 0.1, 0.05, 0.025, 0.0125"),
    "late": (scheduled, flax_sgd(lambda step: 0.1 * 0.5 ** jnp.maximum(step - 1, 0)), "schedule", "a step late"),
    "a schedule": (sgd(), flax_sgd(lambda step: 0.01 * 0.9**step), "schedule", "PyTorch has no schedule"),
}  # fmt: skip


REPAIRED = set[str]()  # what is written hangs on PyTorch's optimizer alone


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_agree_have_no_finding(name):
    assert optimizer_findings(OPTIMIZERS[name], PARAMETERS) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_the_mistake_of_an_optimizer_is_named_and_repaired(name):
    theirs, ours, code, words = MISTAKES[name]
    (finding,) = optimizer_findings((theirs, ours), PARAMETERS)
    assert (finding.code, finding.layer, finding.certain) == (code, "optimizer", True)
    assert words in finding.text
    if finding.repair not in REPAIRED and "schedule(step" not in finding.repair:
        REPAIRED.add(finding.repair)
        repaired = eval(finding.repair, {"optax": optax, "jax": jax, "jnp": jnp})
        assert optimizer_findings((theirs, repaired), PARAMETERS) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "codes"),
    [
        (sgd(nesterov=True), flax_sgd(0.02), {"nesterov", "learning-rate"}),
        (sgd(), flax_sgd(0.02, 0.7), {"momentum", "learning-rate"}),
        (sgd(nesterov=True), flax_sgd(momentum=0.8), {"nesterov", "momentum"}),
        (rmsprop, optax.rmsprop(0.01), {"adam-epsilon", "momentum"}),
    ],
)
def test_two_mistakes_at_once(theirs, ours, codes):
    findings = optimizer_findings((theirs, ours), PARAMETERS)
    assert {f.code for f in findings} == codes
    assert all(f.certain for f in findings)


def test_what_two_causes_explain_is_certain_of_neither():
    """A schedule that halves is early by a step, or half as high."""
    findings = optimizer_findings((scheduled, flax_sgd(lambda step: 0.05 * 0.5**step)), PARAMETERS)
    assert {(f.code, f.certain) for f in findings} == {("learning-rate", False), ("schedule", False)}
    assert "a step early" in str(findings)


def test_another_optimizer_is_unknown():
    (finding,) = optimizer_findings((sgd(), optax.lion(0.01)), PARAMETERS)
    assert (finding.code, finding.certain) == ("unknown", False)
    assert "PyTorch's optimizer is SGD" in finding.text
    assert "from step 1 on" in finding.text
    assert finding.repair == "optax.sgd(0.01, momentum=0.9)"


def test_an_optimizer_that_cannot_be_tried():
    (finding,) = optimizer_findings((lambda p: torch.optim.LBFGS(p), optax.sgd(0.1)), PARAMETERS)
    assert finding.code == "unknown"
    assert "cannot be tried apart from the network: TypeError" in finding.text


def test_what_is_decayed_may_hang_on_flaxs_names():
    kernels = lambda params: jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)  # noqa: E731
    pair = only_matrices, optax.adamw(0.01, weight_decay=0.1, mask=kernels)
    assert optimizer_findings(pair, PARAMETERS, TINY) == []
    tree = {name: {"kernel": True, "bias": False} for name in ("one", "two")}
    assert optimizer_findings((pair[0], optax.adamw(0.01, weight_decay=0.1, mask=tree)), PARAMETERS, TINY) == []


OUTPUT, OTHER, LABELS = floats(6, 3).astype(np.float64), floats(6, 4)[:, 1:], np.array([0, 2, 1, 1, 0, 2])


def entropy(**options):
    return lambda output: F.cross_entropy(output, torch.tensor(LABELS), **options)


def square(output):
    return F.mse_loss(output, torch.tensor(OTHER, dtype=torch.float64))


def each(output):
    return optax.softmax_cross_entropy_with_integer_labels(output, jnp.asarray(LABELS))


def smoothed(share):
    return lambda output: optax.softmax_cross_entropy(
        output, optax.smooth_labels(jax.nn.one_hot(LABELS, 3), share)
    ).mean()


REDUCTION, SMOOTHING = ["loss-reduction"], ["loss-smoothing"]
LOSSES = {
    "right": (entropy(), lambda o: each(o).mean(), [], ""),
    "right, smoothed": (entropy(label_smoothing=0.1), smoothed(0.1), [], ""),
    "sum": (entropy(), lambda o: each(o).sum(), REDUCTION,
            "Flax takes the sum over 6 rows of the batch, PyTorch the mean"),
    "mean": (entropy(reduction="sum"), lambda o: each(o).mean(), REDUCTION, "Flax takes the mean over 6 rows"),
    "half": (square, lambda o: optax.l2_loss(o, OTHER).mean(), REDUCTION, "Flax's loss is half of PyTorch's"),
    "half the sum": (square, lambda o: optax.l2_loss(o, OTHER).sum(), REDUCTION, "over 18 elements, PyTorch the mean"),
    "a row's sum": (square, lambda o: ((o - OTHER) ** 2).sum(1).mean(), REDUCTION, "the sum over 3 elements of a row"),
    "ignored": (entropy(ignore_index=1), lambda o: (each(o) * (LABELS != 1)).mean(), REDUCTION,
                "Flax divides by 6 targets, PyTorch by 4 targets that are not ignored"),
    "times": (entropy(), lambda o: 0.37 * each(o).mean(), REDUCTION, "Flax's loss is 0.37 times PyTorch's"),
    "not smoothed": (entropy(label_smoothing=0.1), lambda o: each(o).mean(), SMOOTHING, "by 0, PyTorch by 0.1"),
    "smoothed more": (entropy(label_smoothing=0.1), smoothed(0.25), SMOOTHING, "by 0.25, PyTorch by 0.1"),
    "smoothed": (entropy(), smoothed(0.1), SMOOTHING, "Flax smooths labels by 0.1, PyTorch by 0"),
    "both": (entropy(label_smoothing=0.1), lambda o: 6 * each(o).mean(), SMOOTHING + REDUCTION, "by 0, PyTorch by 0.1"),
    "another": (square, lambda o: jnp.abs(o - OTHER).mean(), ["unknown"], "on this and two other outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_the_mistake_of_a_loss_is_named(name):
    theirs, ours, codes, words = LOSSES[name]
    findings = loss_findings((theirs, ours), torch.tensor(OUTPUT), OUTPUT)
    assert [f.code for f in findings] == codes
    assert all(f.certain == (f.code != "unknown") and f.layer == "loss" for f in findings)
    assert not codes or words in findings[0].text


def test_outputs_of_any_structure_and_layout():
    images = floats(2, 3, 4, 4).astype(np.float64)
    theirs = lambda out: (out["maps"] ** 2).mean() + out["more"][0].sum()  # noqa: E731
    ours = lambda out: (out["maps"] ** 2).sum() + out["more"][0].sum()  # noqa: E731
    given = {"maps": torch.tensor(images), "more": (torch.tensor(OUTPUT),)}
    carried = {"maps": images.transpose(0, 2, 3, 1), "more": (OUTPUT,)}
    assert loss_findings((theirs, theirs), given, carried) == []
    assert [f.code for f in loss_findings((theirs, ours), given, carried)] == ["unknown"]


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
