"""The whole chain in one call: what agrees, what each mistake is noticed by, and what is said of bad input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import parity
from jaxcnn import UserError
from parity import Entry
from parity.checking import one_thread
from tests.parity.pairs import EXAMPLES, SOME
from tests.parity.small import (  # noqa: F401
    IMAGES,
    TABLE,
    VECTORS,
    FlaxTiny,
    Network,
    Tiny,
    TorchNetwork,
    checked,
    clipped,
    tiny,
    usual_jax,
)

EXACT = 1e-12
DROPOUT = {"vgg_bn", "mobilenetv2", "vit", "gpt", "gpt_scan", "lstm", "bilstm", "gru_nnx", "mixer", "bridge_nnx",
           "bridge_linen", "bert", "squeezenet"}  # fmt: skip
BATCH_NORM = {"vgg_bn", "resnet18", "mobilenetv2", "unet", "autoencoder"}
IN_FLOAT32 = {"lenet5_nnx", "gru_nnx", "bridge_nnx"}


@pytest.mark.parametrize("name", SOME)
def test_every_pair_agrees_in_everything(name):
    example = EXAMPLES[name]()
    precision = ("float64", "float32")[: 1 + (name in IN_FLOAT32)]
    report = parity.check(example.torch_module, example.flax_module, *example.inputs, **example.options,
                          precision=precision, steps=2)  # fmt: skip
    assert report.passed, report
    assert report.first is None
    assert report.failed == []
    assert report.table.doubts == report.table.left == ()
    links = {p: {c.link for c in report.checks if c.precision == p} for p in precision}
    wanted = {"activations", "outputs", "gradients", "step"}
    wanted |= {"statistics"} if name in BATCH_NORM else set()
    assert links.pop("float32", wanted) == wanted
    assert links["float64"] == wanted | {"layers", "trajectory"} | ({"masks"} if name in DROPOUT else set())
    exact = [c for c in report.checks if c.precision == "float64" and c.bound <= EXACT]
    assert max(c.error for c in exact) <= EXACT
    wide = [c for c in report.checks if c.precision == "float64" and c.bound > EXACT]
    assert all(c.link in ("masks", "trajectory") or c.case == "large weights" for c in wide)
    trained = {n for n, _ in example.torch_module.named_parameters()}
    assert {c.tensor for c in exact if c.link == "step"} == trained


MISTAKES = {
    "padding": ({"padding": "SAME"}, "layers", "conv"),
    "epsilon": ({"epsilon": 1e-3}, "layers", "norm"),
    "no relu": ({"relu": False}, "layers", "input of fc"),
    "tanh": ({"tanh": True}, "layers", "input of head"),
    "no dropout": ({"rate": None}, "masks", "drop"),
    "rate": ({"rate": 0.5}, "masks", "share kept by drop = drop"),
    "momentum": ({"momentum": 0.99}, "statistics", "norm.running_mean"),
    "biased variance": ({"norm": nn.BatchNorm}, "statistics", "norm.running_var"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_port_is_noticed_where_it_is(mistake):
    changes, link, tensor = MISTAKES[mistake]
    report = checked(Network(**changes), train=link != "layers")
    assert not report.passed
    assert (report.first.precision, report.first.link, report.first.tensor) == ("float64", link, tensor)
    assert f"first difference: float64/{link}/{tensor}" in str(report)


@pytest.mark.parametrize(("mistake", "layer"), [("padding", "conv"), ("epsilon", "norm")])
def test_one_bad_layer_does_not_hide_that_the_others_are_right(mistake, layer):
    report = checked(Network(**MISTAKES[mistake][0]), train=False)
    assert {c.tensor for c in report.failed if c.link == "layers"} == {layer}
    assert {c.tensor for c in report.failed if c.link == "activations"} >= {layer, "fc", "head"}


def test_flattening_in_another_order_is_noticed_by_the_table_of_the_right_one():
    report = checked(Network(order=(0, 2, 1, 3)), table=TABLE, train=False)
    assert (report.first.link, report.first.tensor) == ("layers", "input of fc")


def test_a_table_of_the_users_own_is_taken():
    report = checked(Network(), table=TABLE)
    assert report.passed, report
    assert report.table == TABLE


def test_a_wrong_table_of_the_users_own_is_noticed():
    report = checked(Network(), table=TABLE.with_axes("fc/kernel", "o i -> i o"), train=False)
    assert (report.first.link, report.first.tensor) == ("layers", "fc")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry("head.weight", "head/kernel", "o i -> o i"), "head/kernel is [3, 8], Flax has [8, 3]"),
        (Entry("head.weight", "tail/kernel", "o i -> i o"), "params/tail/kernel is [8, 3], Flax has no such variable"),
        (Entry("head.weight", "head/kernel", "a b c -> c b a"), "head.weight and head/kernel: a b c -> c b a"),
        (Entry("tail.weight", "head/kernel", "o i -> i o"), "tail.weight"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(entry, words):
    with pytest.raises(UserError, match="the table does not fit") as raised:
        checked(Network(), table=TABLE.with_entries(entry))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                (first, second), lr = group["betas"], group["lr"]
                update = momentum.mul(first).add(p.grad, alpha=1 - first).sign()
                p.sub_(lr * (update + group["weight_decay"] * p))
                momentum.mul_(second).add_(p.grad, alpha=1 - second)


def scheduled(params):
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def scale_as_pytorch(updates, params):
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(updates)))
    scale = jnp.minimum(1, 0.1 / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, updates)


OPTIMIZERS = {
    "SGD": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
        optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.8, nesterov=True)),
    ),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.01), optax.adam(0.01)),
    "AdamW": (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)),
    "RMSprop": (
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        optax.rmsprop(0.01, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    ),
    "Adagrad": (
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=0),
        optax.adagrad(0.1, initial_accumulator_value=0, eps=0),
    ),
    "Lion": (Lion, optax.lion(0.01, weight_decay=0.1)),
    "clipping": (clipped, optax.chain(optax.stateless(scale_as_pytorch), optax.sgd(0.1))),
    "schedule": (scheduled, optax.sgd(lambda step: 0.1 * 0.5**step, momentum=0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_are_the_same(name):
    report = tiny(optimizer=OPTIMIZERS[name], steps=3)
    assert report.passed, report
    assert {c.tensor for c in report.checks if c.link == "trajectory"} == {*dict(Tiny().named_parameters())}


@pytest.mark.parametrize(
    ("name", "other", "link"),
    [
        ("SGD", optax.sgd(0.1, momentum=0.8, nesterov=True), "step"),
        ("Adam", optax.adam(0.01, eps=1e-7), "step"),
        ("Adam", optax.adam(0.01, b2=0.99), "trajectory"),
        ("AdamW", optax.adamw(0.01), "step"),
        ("RMSprop", optax.rmsprop(0.01, decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=1.0), "step"),
        ("Lion", optax.lion(0.01), "step"),
        ("clipping", optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)), "step"),
        ("schedule", optax.sgd(0.1, momentum=0.9), "trajectory"),
    ],
)
def test_optimizers_that_are_not(name, other, link):
    """A constant of another name's default; what PyTorch adds to the norm; a schedule forgotten."""
    report = tiny(optimizer=(OPTIMIZERS[name][0], other), steps=3)
    assert report.first.link == link
    assert {c.link for c in report.failed} <= {"step", "trajectory"}


class Frozen(Tiny):
    def __init__(self):
        super().__init__()
        self.one.weight.requires_grad_(False)


def test_what_pytorch_does_not_train_is_not_trained():
    report = checked(FlaxTiny(), torch_module=Frozen, inputs=(VECTORS,), optimizer=OPTIMIZERS["AdamW"])
    assert report.passed, report
    trained = {"one.bias", "two.weight", "two.bias"}
    assert {c.tensor for c in report.checks if c.link in ("step", "trajectory")} == trained
    assert {c.tensor for c in report.checks if c.link == "gradients"} == trained | {"input"}


@pytest.mark.parametrize("options", [{"train": False}, {"steps": 1}, {"precision": ("float32",)}])
def test_what_is_not_asked_for_is_left_out(options):
    report = tiny(**options)
    assert report.passed, report
    links = {c.link for c in report.checks}
    assert {"activations", "outputs", "gradients"} <= links
    assert ("step" in links) is options.get("train", True)
    assert "trajectory" not in links
    assert {c.precision for c in report.checks} == {*options.get("precision", ["float64"])}


def test_jax_may_compute_in_float64_already():
    with jax.enable_x64(True):
        assert tiny(precision=("float64", "float32")).passed
        assert jax.config.jax_enable_x64


def test_a_loss_of_the_users_own():
    labels = np.array([0, 2, 1, 1, 0, 2])

    def theirs(output):
        return F.cross_entropy(output, torch.tensor(labels))

    def ours(output):
        return optax.softmax_cross_entropy_with_integer_labels(output, jnp.asarray(labels)).mean()

    report = tiny(loss=(theirs, ours))
    assert report.passed, report
    assert {(c.link, c.tensor) for c in report.checks} >= {
        ("outputs", "loss"),
        ("step", "loss"),
        ("trajectory", "loss"),
    }
    report = tiny(loss=(theirs, lambda output: ours(output) * 6))
    assert (report.first.link, report.first.tensor) == ("outputs", "loss")


def converted(module=None):
    """The weights of the tiny network, converted by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = (module or Tiny()).state_dict()
    return {n: {"kernel": state[f"{n}.weight"].numpy().T, "bias": state[f"{n}.bias"].numpy()} for n in ("one", "two")}


@pytest.mark.parametrize("wrap", [lambda params: {"params": params}, lambda params: params])
def test_weights_that_the_user_converted(wrap):
    report = tiny(variables=wrap(converted()), train=False)
    assert report.passed, report
    yours = {c.tensor for c in report.checks if c.case == "yours"}
    assert yours == {f"params/{layer}/{name}" for layer in ("one", "two") for name in ("kernel", "bias")}


def test_weights_that_the_user_converted_wrongly():
    wrong = converted()
    wrong["two"]["bias"] = wrong["two"]["bias"] + 1e-3
    report = tiny(variables=wrong, train=False)
    assert [(c.link, c.tensor) for c in report.failed] == [("weights", "params/two/bias")]
    del wrong["two"]
    report = tiny(variables={"params": wrong}, train=False)
    assert {c.tensor for c in report.failed} == {"params/two/bias", "params/two/kernel"}
    assert "it is missing" in str(report.first)


class NNXTiny(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.tanh(self.one(x)))


def test_weights_that_the_user_put_into_an_nnx_module():
    module = NNXTiny(nnx.Rngs(0))
    assert not tiny(module, variables=module, train=False).passed
    for name, arrays in converted().items():
        getattr(module, name).kernel.set_value(jnp.asarray(arrays["kernel"]))
        getattr(module, name).bias.set_value(jnp.asarray(arrays["bias"]))
    for variables in (module, nnx.state(module)):
        assert tiny(module, variables=variables, train=False).passed


def test_pytorch_computes_in_one_thread_and_then_in_as_many_as_before(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    with one_thread():
        assert seen == [1]
    assert seen == [1, 7]
