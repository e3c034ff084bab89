"""A report: as text, as JSON, as an assertion, as a figure."""

import json

import flax.linen as nn
import jax
import pytest
import torch

import parity
from tests.parity.pairs import EXAMPLES
from tests.parity.small import VECTORS, Network, checked, tiny, usual_jax  # noqa: F401


@pytest.fixture(scope="module")
def right():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return checked(Network(), precision=("float64", "float32"), steps=3)


@pytest.fixture(scope="module")
def wrong():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return checked(Network(padding="SAME", momentum=0.99, rate=0.5))


def test_a_report_as_json(right, wrong):
    for report in (right, wrong):
        found = json.loads(report.json(), parse_constant=pytest.fail)
        assert found["passed"] is report.passed
        assert [c["name"] for c in found["checks"]] == [c.name for c in report.checks]
        assert [c["passed"] for c in found["checks"]] == [c.passed for c in report.checks]
        assert len(found["table"]["entries"]) == len(report.table.entries)
        assert found["calls"]["conv"] == "conv"
        assert (found["torch"], found["flax"]) == ("TorchNetwork", "Network")
    assert found["first"] == "float64/layers/conv"
    assert right.passed, right


def test_a_report_fits_a_screen(right, wrong):
    for report in (right, wrong):
        lines = str(report).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 200
    assert str(right).endswith(f"passed: {len(right.checks)} comparisons")
    assert f"failed: {len(wrong.failed)} of {len(wrong.checks)} comparisons" in str(wrong)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(8):
            x = nn.LayerNorm(epsilon=0.01)(x)
        return x


def test_what_is_said_of_many_layers_that_differ_fits_a_screen():
    theirs = torch.nn.Sequential(*(torch.nn.LayerNorm(4) for _ in range(8)))
    report = parity.check(theirs, Normalised(), VECTORS, precision=("float64",), train=False)
    assert len(report.table.doubts) == 8
    assert len(report.failed) > 16
    assert len(str(report).splitlines()) <= 16
    with pytest.raises(AssertionError) as raised:
        report.assert_passed()
    assert len(str(raised.value).splitlines()) <= 12


def test_the_report_of_a_large_pair_fits_a_screen():
    example = EXAMPLES["gpt"]()
    report = parity.check(
        example.torch_module, example.flax_module, *example.inputs, precision=("float64",), train=False
    )
    assert len(str(report).splitlines()) <= 40
    assert max(map(len, str(report).splitlines())) <= 200


def test_an_assertion_names_both_sides_and_what_differs(right, wrong):
    right.assert_passed()
    with pytest.raises(AssertionError) as raised:
        wrong.assert_passed()
    text = str(raised.value)
    assert text.startswith("Network is not TorchNetwork\n")
    assert "float64/activations/conv: error" in text
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("name", ["f.png", "f.svg", "f.pdf"])
def test_a_figure_is_written(right, tmp_path, name):
    right.figure(tmp_path / name)
    right.figure(str(tmp_path / f"again.{name}"))
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_figure_of_what_differs_and_of_one_precision_is_written(wrong, tmp_path):
    wrong.figure(tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


def test_a_figure_without_training_is_written(tmp_path):
    tiny(train=False).figure(tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


class Exchanged(nn.Module):
    """The port of `Gated`, with the names of its layers or others."""

    names: tuple[str, str]

    @nn.compact
    def __call__(self, x):
        one, two = (nn.Dense(4, name=name) for name in self.names)
        return nn.silu(one(x)) * two(x)


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.nn.functional.silu(self.gate(x)) * self.up(x)


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (("gate", "up"), False),
        (("up", "gate"), True),
        (("up_proj", "gate_proj"), True),
        (("a", "b"), False),
        (("Dense_1", "Dense_0"), False),
    ],
)
def test_exchanged_names_are_noted(names, noted):
    report = parity.check(Gated(), Exchanged(names), VECTORS, precision=("float64",), train=False)
    assert report.passed
    words = f"gate is {names[0]} by value, not by name, and the other way round: do not carry weights by name"
    assert (words in report.notes) == noted
    assert len(report.notes) == 1 + noted
