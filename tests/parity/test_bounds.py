import math

import numpy as np
import pytest
import torch

from jaxcnn.networks.tutorial import CNN
from parity.bounds import EPSILON, Check, error, float32_floor, judge
from parity.links import Condition, compare, condition_of
from parity.twins.pairs import pair_of

PLACE = {"precision": "float64", "link": "gradients", "tensor": "fc4.weight"}


def test_error_is_relative_to_the_largest_element():
    assert error([1.0, 2.5], [1.0, 2.0]) == 0.25
    assert error([[0.0, -4.0]], [[0.0, -4.0]]) == 0.0
    assert error(3.0, 2.0) == 0.5


@pytest.mark.parametrize(
    ("found", "truth"),
    [
        ([0.0, 1e-300], [0.0, 0.0]),
        ([np.nan, 1.0], [1.0, 1.0]),
        ([np.inf, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [np.nan, 1.0]),
        ([1.0], [1.0, 1.0]),
        ([[1.0]], [1.0]),
    ],
)
def test_what_has_no_error_is_infinitely_wrong(found, truth):
    assert error(found, truth) == math.inf
    assert not judge(found, truth, **PLACE).passed


def test_zeros_must_be_zeros():
    assert error(np.zeros(3), np.zeros(3)) == 0.0
    assert judge(np.zeros(3), np.zeros(3), np.zeros(3), **PLACE).passed


def test_float64_has_a_fixed_bound():
    assert judge([1.0 + 0.9e-12], [1.0], **PLACE).passed
    assert not judge([1.0 + 1.1e-12], [1.0], **PLACE).passed


def test_float32_may_be_twice_as_wrong_as_pytorch_and_never_needs_to_be_better_than_the_floor():
    truth = np.array([1.0, -2.0])
    for own, ours, passes in [
        (1e-5, 1.9e-5, True),
        (1e-5, 2.1e-5, False),
        (0, 0.9e-6, True),
        (0, 1.1e-6, False),
    ]:
        check = judge(truth * (1 + ours), truth, truth * (1 + own), floor=1e-6, **PLACE)
        assert check.passed is passes
        assert check.pytorch == pytest.approx(own)


@pytest.mark.parametrize(("size", "times"), [(0.01, 1), (8, 8), (16, 16)])
def test_a_loss_magnifies_an_error_of_large_logits(size, times):
    logits = np.array([[size, -1e-3, -1e-3]])
    found = condition_of(lambda outputs: torch.nn.functional.cross_entropy(outputs, torch.tensor([0])), logits)
    # Where p is almost 1, the loss is 1 - p, and so is its largest derivative; d(1 - p) = -(1 - p) d logit.
    assert found == pytest.approx((times, times), rel=0.02)
    assert condition_of(lambda outputs: (outputs**2).sum(), np.array([[3.0]])) == pytest.approx((2, 1), rel=0.001)
    for nothing in 0.0, np.nan:
        assert condition_of(lambda outputs, x=nothing: (outputs * x).sum(), logits) == (1, 1)


@pytest.mark.parametrize("link", ["activations", "outputs", "gradients", "step"])
def test_the_floor_follows_the_loss_and_is_doubled_on_the_way_back(link):
    weights, truth = {"w": np.ones((3, 4))}, {"w": np.ones(2), "loss": np.ones(())}
    pair, floor = pair_of(CNN(4, 16), "float32"), float32_floor(weights)
    back = 2 if link in ("gradients", "step") else 0
    for given, (of_loss, of_gradient) in ([], (1, 1)), ([Condition(3, 5)], (3, 5)):
        checks = compare(pair, weights, link, truth, [truth, truth], *given)
        bounds = {check.tensor: check.bound / floor for check in checks}
        assert bounds == pytest.approx({"w": back * of_gradient or 1, "loss": of_loss})


def test_a_failure_names_the_worst_place_and_both_values():
    truth = np.arange(6.0).reshape(2, 3)
    found = truth.copy()
    found[1, 0] = 7.0
    text = str(judge(found, truth, case="ties", step=63, **PLACE))
    for words in (
        "float64/gradients/fc4.weight@ties",
        "error 0.8",
        "bound 1e-12",
        "after step 63",
        "[1, 0]",
        "JAX 7",
        "PyTorch 3",
    ):
        assert words in text
    found[0, 1] = np.nan
    assert judge(found, truth, **PLACE).index == [0, 1]
    assert "(2, 3)" in str(judge(found[:1], truth, **PLACE))


def test_share_orders_checks_by_how_near_they_are_to_failing():
    checks = [
        Check("", "", n, e, b) for n, e, b in (("a", 0.0, 0.0), ("b", 1.0, 2.0), ("c", 3.0, 2.0), ("d", 1.0, 0.0))
    ]
    assert [check.tensor for check in sorted(checks, key=lambda c: c.share)] == ["a", "b", "c", "d"]
    assert [check.passed for check in checks] == [True, True, False, False]


def test_the_float32_floor_grows_with_depth_and_the_longest_sum():
    def network(*shapes):
        return {f"layer{i}.weight": np.zeros(shape) for i, shape in enumerate(shapes)}

    tutorial = network((32, 3, 3, 3), (32, 32, 3, 3), (512, 8192), (10, 512))
    assert float32_floor({**tutorial, "layer0.bias": np.zeros(32)}) == 8 * EPSILON
    assert float32_floor(network(*[(10, 512)] * 3)) == 6 * EPSILON
    assert float32_floor(network(*[(10, 2)] * 5)) == 5 * EPSILON
    assert float32_floor(network((10, 2))) == float32_floor({}) == 4 * EPSILON


def test_a_check_says_as_much_as_it_knows():
    assert str(Check("float64", "outputs", "loss", 2.0, 1.0)) == "float64/outputs/loss: error 2, bound 1"
    known = Check("float64", "outputs", "fc4", 2.0, 1.0, step=3, index=[0, 3], ours=0.5, truth=0.25)
    assert str(known) == "float64/outputs/fc4: error 2, bound 1, after step 3 at [0, 3]: JAX 0.5, PyTorch 0.25"


def test_the_place_is_where_the_difference_is_largest_not_the_values():
    assert judge(np.array([1.0, 5.0]), np.array([2.0, 5.0]), **PLACE).index == [0]
