"""Mistakes made on purpose in a user's pair: each is noticed where it is, and one that is not is said."""

import json
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from jaxcnn import UserError, platform
from parity import __main__, controls, mistakes
from parity.calls import as_numpy
from parity.mistakes import Control
from tests.parity.pairs import EXAMPLES
from tests.parity.pairs.example import floats
from tests.parity.small import FlaxTiny, Network, Tiny, checked, tiny, usual_jax  # noqa: F401


def places(report):
    """Where each control has to be noticed first, and that it was."""
    assert report.passed, report
    assert all(tried.passed and tried.caught_by.startswith(tried.expected) for tried in report.controls)
    return {tried.name: tried.expected.removeprefix("float64/") for tried in report.controls}


EVERY = {
    "channels of the input reversed": "activations",
    "axes of conv/kernel exchanged": "activations/conv",
    "conv shifted by a pixel": "activations/conv",
    "bias of head left out": "activations/head",
    "epsilon of norm tenfold": "activations/norm",
    "output of conv a millionth too large": "activations/conv",
    "output of head a millionth too large": "activations/head",
    "rows of the output exchanged": "outputs",
    "gradient of norm halved": "gradients",
    "mask of drop the same for all rows": "masks",
    "rate of drop halved": "masks",
    "momentum of norm wrong": "statistics",
    "learning rate 1 % more": "step",
    "momentum forgotten": "trajectory",
}


def test_each_mistake_that_fits_a_pair_is_noticed_where_it_is():
    report = checked(Network(), controls=True)
    assert places(report) == EVERY
    assert f"controls: {len(EVERY)} mistakes made on purpose, each noticed" in str(report)
    first = json.loads(report.json())["controls"][0]
    where = "float64/activations"
    assert first == {"name": next(iter(EVERY)), "expected": where, "caught_by": f"{where}/conv", "passed": True}


def test_mistakes_in_the_loss_and_in_the_optimizer_of_the_users_own():
    loss = (lambda output: output.square().mean(), lambda output: jnp.square(output).mean())
    optimizer = (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1))
    found = places(tiny(loss=loss, optimizer=optimizer, controls=True))
    assert found["loss doubled"] == "outputs/loss"
    assert (found["weight decay forgotten"], found["momentum forgotten"]) == ("step", "trajectory")


def test_what_the_optimizer_does_not_have_cannot_be_forgotten():
    warm = lambda step: 0.01 * step  # noqa: E731
    report = tiny(optimizer=(warmed_up, optax.sgd(warm)), controls=True)
    found = {name: place for name, place in places(report).items() if place in ("step", "trajectory")}
    assert found == {"learning rate 1 % more": "trajectory"}  # the first step is none


def warmed_up(params):
    optimizer = torch.optim.SGD(params, lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


@pytest.mark.parametrize("name", ["initial", "initial_nnx"])
def test_pairs_of_linen_and_of_nnx(name):
    example = EXAMPLES[name]()
    report = parity.check(example.torch_module, example.flax_module, *example.inputs, precision=("float64",), steps=2,
                          controls=True)  # fmt: skip
    links = [place.partition("/")[0] for place in places(report).values()]
    assert links == ["activations"] * 6 + ["outputs", "gradients", "step", "trajectory"]


class TorchDropping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = torch.nn.LayerNorm(6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 6)

    def forward(self, x, mask):
        return self.head(self.drop(self.norm(x)) * mask)


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.drop = (
            nnx.LayerNorm(6, epsilon=1e-5, use_fast_variance=False, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
        )
        self.head = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x, mask):
        return self.head(self.drop(self.norm(x)) * mask)


def test_nothing_of_the_users_is_changed():
    theirs, ours, inputs = TorchDropping(), Dropping(nnx.Rngs(0)), (floats(4, 6), np.ones((4, 1), np.float32))

    def values():
        variables = jax.tree.leaves(nnx.state(ours, nnx.Param))
        return [as_numpy(array) for array in (*theirs.state_dict().values(), *variables, *inputs)]

    def attributes():
        return {name: {**vars(getattr(ours, name))} for name in ("norm", "drop")}

    before, as_they_were = [value.copy() for value in values()], attributes()
    found = places(parity.check(theirs, ours, *inputs, precision=("float64",), steps=2, controls=True))
    assert found.keys() >= {"axes of head/kernel exchanged", "epsilon of norm tenfold", "rate of drop halved",
                            "mask of drop the same for all rows", "input 0 reversed along axis 1"}  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, before, values())
    assert attributes() == as_they_were
    assert not jax.config.jax_enable_x64


@dataclass(frozen=True)
class Bare:
    operations: dict[str, Any] = field(default_factory=dict)


def test_an_attribute_is_another_for_one_call_even_if_that_fails():
    module = SimpleNamespace(rate=0.5)
    wrong = mistakes.attribute("drop", "rate", lambda rate: rate / 2)(Bare()).operations["drop"]
    assert wrong(module, lambda: module.rate) == 0.25
    with pytest.raises(ZeroDivisionError):
        wrong(module, lambda: 1 / 0)
    assert module.rate == 0.5


def test_a_comparison_that_is_blind_is_found_out(monkeypatch):
    monkeypatch.setattr("parity.bounds.error", lambda *given: 0.0)
    report = tiny(train=False, controls=True)
    assert report.first is None
    assert not report.passed
    assert {tried.caught_by for tried in report.controls} == {None}
    assert f"{len(report.controls)} mistakes made on purpose, {len(report.controls)} NOT noticed" in str(report)


def test_inputs_that_show_too_little_are_found_out():
    report = checked(FlaxTiny(), torch_module=Tiny, inputs=(np.ones((6, 4), np.float32),), train=False, controls=True)
    missed = {tried.name for tried in report.controls if not tried.passed}
    assert missed == {"input 0 reversed along axis 1", "rows of the output exchanged"}
    with pytest.raises(AssertionError, match="FlaxTiny is not shown to be Tiny") as raised:
        report.assert_passed()
    assert ("not noticed: rows of the output exchanged (expected float64/outputs): this comparison cannot see such a "
            "mistake; give other inputs") in str(raised.value)  # fmt: skip
    assert "\npassed:" not in str(report)


def test_a_mistake_that_is_noticed_elsewhere_does_not_count(monkeypatch):
    wrong = Control("bias of one left out", ("activations", "two", ""), mistakes.unbiased("one"))
    monkeypatch.setattr(controls, "controls", lambda matched: [wrong])
    report = tiny(train=False, controls=True)
    assert not report.passed
    line = "bias of one left out: by float64/activations/one, expected float64/activations/two"
    assert f"not noticed where it is: {line}" in str(report)


def test_a_mistake_that_cannot_be_made_does_not_count(monkeypatch):
    def fails(pair):
        raise UserError("its call fails", "FlaxTiny", "call it yourself")

    monkeypatch.setattr(controls, "controls", lambda matched: [Control("none", ("outputs", "", ""), fails)])
    report = tiny(train=False, controls=True)
    assert not report.passed
    assert "its call fails" in str(report)


@pytest.mark.parametrize(
    ("module", "options", "why"),
    [
        (FlaxTiny(), {"precision": ("float32",)}, "they need float64"),
        (Network(padding="SAME"), {}, "the pair itself differs"),
    ],
)
def test_controls_are_not_made_where_they_say_nothing(module, options, why):
    made = tiny if isinstance(module, FlaxTiny) else checked
    report = made(module, train=False, controls=True, **options)
    assert report.controls == ()
    assert f"note: no mistakes were made on purpose: {why}" in str(report)


def test_the_command_makes_them(monkeypatch, capsys):
    names = ["--torch", "tests.parity.small:Tiny", "--flax", "tests.parity.small:FlaxTiny"]
    seen = {}
    report = tiny(train=False)
    monkeypatch.setattr("parity.checking.check", lambda *given, **options: seen.update(options) or report)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(platform, "start", lambda name: None)
    for more in ([], ["--controls"]):
        seen.clear()
        monkeypatch.setattr(sys, "argv", ["parity", *names, "--input", "6,4", *more])
        assert __main__.main() == 0
        assert seen.get("controls", False) == bool(more)
    monkeypatch.setattr(sys, "argv", ["parity", "--controls"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "--controls is for a pair of your own" in capsys.readouterr().err
