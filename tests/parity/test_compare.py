import math

import numpy as np
import pytest

from parity.compare import CHANCE, FLOOR, Check, error, judge, kolmogorov_smirnov


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
    assert not judge("x", found, truth).passed


def test_zeros_must_be_zeros():
    assert error(np.zeros(3), np.zeros(3)) == 0.0
    assert judge("x", np.zeros(3), np.zeros(3), np.zeros(3)).passed


def test_float64_has_a_fixed_bound():
    assert judge("x", [1.0 + 0.9e-12], [1.0]).passed
    assert not judge("x", [1.0 + 1.1e-12], [1.0]).passed


def test_float32_may_be_twice_as_wrong_as_pytorch_and_never_needs_to_be_better_than_the_floor():
    truth = np.array([1.0, -2.0])
    for own, ours, passes in [
        (1e-5, 1.9e-5, True),
        (1e-5, 2.1e-5, False),
        (0, 0.9 * FLOOR, True),
        (0, 1.1 * FLOOR, False),
    ]:
        check = judge("x", truth * (1 + ours), truth, truth * (1 + own))
        assert check.passed is passes
        assert check.pytorch == pytest.approx(own)


def test_a_failure_names_the_worst_place_and_both_values():
    truth = np.arange(6.0).reshape(2, 3)
    found = truth.copy()
    found[1, 0] = 7.0
    text = str(judge("float64/gradients/fc4.weight@ties", found, truth, where="after step 63"))
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
    assert judge("x", found, truth).index == [0, 1]
    assert "(2, 3)" in str(judge("x", found[:1], truth))


def test_share_orders_checks_by_how_near_they_are_to_failing():
    checks = [Check("a", 0.0, 0.0), Check("b", 1.0, 2.0), Check("c", 3.0, 2.0), Check("d", 1.0, 0.0)]
    assert [check.name for check in sorted(checks, key=lambda c: c.share)] == ["a", "b", "c", "d"]
    assert [check.passed for check in checks] == [True, True, False, False]


def test_kolmogorov_smirnov_tells_distributions_apart():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1, 1, 5000)
    distance, critical = kolmogorov_smirnov(uniform, rng.uniform(-1, 1, 4000))
    assert distance < critical / 1.5
    distance, critical = kolmogorov_smirnov(uniform, rng.normal(0, 1 / 3**0.5, 4000))
    assert distance > critical
    assert kolmogorov_smirnov(np.zeros(9), np.ones(9))[0] == 1.0


def test_kolmogorov_smirnov_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(1).normal(size=(2, 300))
    distance, critical = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert stats.kstwobign.sf(critical * math.sqrt(150)) == pytest.approx(CHANCE, rel=1e-3)


def test_a_check_says_as_much_as_it_knows():
    assert str(Check("outputs/loss", 2.0, 1.0)) == "outputs/loss: error 2, bound 1"
    known = Check("outputs/fc4", 2.0, 1.0, index=[0, 3], ours=0.5, truth=0.25, where="after step 3")
    assert str(known) == "outputs/fc4: error 2, bound 1, after step 3 at [0, 3]: JAX 0.5, PyTorch 0.25"


def test_the_place_is_where_the_difference_is_largest_not_the_values():
    assert judge("x", np.array([1.0, 5.0]), np.array([2.0, 5.0])).index == [0]
