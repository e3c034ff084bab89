"""The parts of the diagnosis: PyTorch run again, numbers solved for, how errors lie, what is said."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parity.bounds import Check
from parity.calls import Call, Draw, Trace
from parity.diagnosis.finding import Finding
from parity.diagnosis.lies import how_it_lies
from parity.diagnosis.modes import draw_findings, precision_findings
from parity.diagnosis.solve import solve
from parity.diagnosis.tape import Change, Tape, Target
from parity.given import Given
from parity.report import told
from parity.table import Entry
from tests.parity.pairs import EXAMPLES
from tests.parity.small import Network, checked, usual_jax  # noqa: F401


@pytest.mark.parametrize("name", EXAMPLES)
def test_pytorch_run_again_gives_the_same_everywhere(name):
    example = EXAMPLES[name]()
    options = {n: v for n, v in example.options.items() if n != "variables"}
    tape = Tape(Given(example.torch_module, example.flax_module, example.inputs, **options), {})
    again = tape.run()
    assert again.keys() == tape.truth.keys()
    assert all(torch.equal(again[target], tape.truth[target]) for target in again)
    assert all(target.side == "result" or tape.sources[target] for target in tape.truth if target.side != "input")


class InPlace(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.one(x)
        F.relu_(y)
        y += x
        return self.two(y)


class InFlax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(4)(x)) + x)


def test_operations_in_place_are_seen_and_changed():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    tape = Tape(Given(InPlace(), InFlax(), (x,)), {})
    relu, add = (next(op for op in tape.ops.values() if op.kind == kind) for kind in ("relu", "add"))
    linear = tape.truth[Target("output", "one")]
    assert torch.equal(relu.input, linear), "recorded as it was before it was overwritten"
    assert torch.equal(add.input, linear.relu())
    target = Target("input", "two")
    assert torch.equal(tape.truth[target], linear.relu() + torch.tensor(x).double())
    skipped = tape.run(Change(ops={relu.key: lambda now: now.input.clone()}), target)
    assert torch.equal(skipped[target], linear + torch.tensor(x).double())
    assert Target("output", "two") not in skipped, "it stops where it was told to"
    assert relu.key in set(tape.slice(target))


def test_what_is_fed_goes_on():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    given = Given(InPlace(), InFlax(), (x,))
    tape = Tape(given, {"one": torch.ones(3, 4, dtype=torch.float64)})
    assert torch.equal(tape.truth[Target("input", "two")], 1 + torch.tensor(x).double())
    assert set(tape.slice(Target("input", "two"))) >= {"one", "input 0"}


@given(st.floats(-4, 4).map(lambda x: float(f"{x:.2g}")).filter(lambda x: abs(x) > 0.01))
def test_a_number_is_solved_for_and_written_short(number):
    x = np.random.default_rng(0).normal(size=50)
    found = solve(
        lambda a: np.where(x > 0, x, a * x) + a**2, np.where(x > 0, x, number * x) + number**2, (1.0, -1.0), 1e-12
    )
    assert found == number


@given(st.sampled_from([1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0]), st.sampled_from([1e-5, 1e-6, 1e-3]))
def test_an_epsilon_is_solved_for(epsilon, other):
    x = np.random.default_rng(0).normal(size=(6, 8))
    norm = lambda e: x / np.sqrt(x.var(1, keepdims=True) + e)  # noqa: E731
    found = solve(norm, norm(epsilon), (1e-5, 1e-3), 1e-12)
    assert found == pytest.approx(epsilon, rel=1e-3, abs=2e-12)


def test_no_number_is_found_where_there_is_none():
    x = np.random.default_rng(0).normal(size=50)
    assert solve(lambda a: a * x, np.tanh(x), (1.0, 0.1), 1e-12) is None
    assert solve(lambda a: None, x, (1.0,), 1e-12) is None


IMAGES = np.random.default_rng(0).normal(size=(2, 6, 5, 4))


def spoilt(*index):
    array = IMAGES.copy()
    array[index] += 1
    return array


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (IMAGES * 3, "all values are 3 times"),
        (IMAGES[:, ::-1], "in another order"),
        (IMAGES.astype(np.float32), "float32's rounding"),
        (spoilt(slice(None), slice(0, 1)), "only in row 0 (the border)"),
        (spoilt(slice(None), slice(None), slice(None), 2), "only in channel 2"),
        (IMAGES + np.arange(1, 7)[:, None, None], "growing with the row"),
        (IMAGES[:, 1:], "has shape [2, 5, 5, 4]"),
    ],
)
def test_how_an_error_lies(ours, words):
    assert words in how_it_lies(ours, IMAGES if ours.shape == IMAGES.shape else None)


def draw(path, keep, *shape):
    return Draw(path, "", keep, np.empty(shape))


@pytest.mark.parametrize(
    ("theirs", "ours", "calls", "draws", "code"),
    [
        ({"d": draw("d", 0.9, 2, 3)}, {"D": draw("D", 0.9, 2, 3)}, {}, [Entry("d", "D", "a -> a")], None),
        ({"d": draw("d", 0.9, 2, 3)}, {"D": draw("D", 0.1, 2, 3)}, {}, [Entry("d", "D", "a -> a")], "dropout-rate"),
        ({"d": draw("d", 0.9, 2, 3)}, {"D": draw("D", 0.9, 1, 3)}, {}, [], "dropout-broadcast"),
        ({"d": draw("d", 0.9, 2, 3)}, {}, {"D": Call("D", "Dropout", {}, {})}, [], "mode"),
        ({"d": draw("d", 0.9, 2, 3)}, {}, {}, [], "layer-missing"),
        ({}, {"D": draw("D", 0.9, 2, 3)}, {}, [], "layer-missing"),
    ],
)
def test_why_dropout_differs(theirs, ours, calls, draws, code):
    found = list(draw_findings(theirs, Trace(calls, ours), draws, "nn"))
    assert [finding.code for finding in found] == ([code] if code else [])


def test_what_agrees_in_float64_only():
    check = lambda precision, error: Check(precision, "activations", "a = A", error, 1e-6, pytorch=1e-7)  # noqa: E731
    [finding] = precision_findings([check("float64", 0), check("float32", 2e-3)])
    assert (finding.code, finding.layer) == ("precision", "a = A")
    assert "bfloat16" in finding.text
    assert list(precision_findings([check("float64", 1), check("float32", 1)])) == []


def test_findings_with_one_cause_are_told_together():
    one = Finding("padding", "a = A", True, "Flax pads", "padding=1")
    lines = list(told([one, Finding("padding", "b = B", True, "Flax pads", "padding=1")]))
    assert lines == ["a = A, b = B   [padding]", "    Flax pads", "    repair: padding=1"]
    lines = list(told([Finding(c, "a = A", False, c, "x") for c in ("scale", "residual")]))
    assert lines[0] == "a = A   [scale; scale or residual, not sure which]"


def test_the_report_says_why(tmp_path):
    report = checked(Network(padding="SAME", tanh=True), train=False)
    assert [(f.code, f.certain) for f in report.diagnosis] == [("padding", True), ("activation-variant", True)]
    text = str(report)
    assert text.index("conv   [padding]") < text.index("link ")
    assert "nn.Conv(..., padding=((1, 1), (1, 1)))" in text
    with pytest.raises(AssertionError, match="gelu"):
        report.assert_passed()
    assert [f["code"] for f in json.loads(report.json())["diagnosis"]] == ["padding", "activation-variant"]
    report.figure(tmp_path / "f.png")
    assert checked(Network(), train=False).diagnosis == ()


def test_a_mistake_of_the_gradient_only_is_said_to_be_unknown():
    class Stopped(Network):
        @nn.compact
        def __call__(self, x, train):
            return jax.lax.stop_gradient(super().__call__(x, train)) * 1.0

    report = checked(Stopped(), train=False)
    assert [f.code for f in report.diagnosis] == ["unknown"]
    assert "gradients" in report.diagnosis[0].text
