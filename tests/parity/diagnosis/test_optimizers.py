"""An optimizer's classic mistakes: each is named, with both values, and its repair brings agreement."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

from parity.diagnosis.optimizers import optimizer_findings
from tests.parity.small import TINY, Tiny, clipped, usual_jax  # noqa: F401
from tests.parity.test_checking import OPTIMIZERS, scheduled

PARAMETERS = {name: p.detach().numpy() for name, p in Tiny().named_parameters()}


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
