"""A loss's classic mistakes: each is named, with both values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

from parity.diagnosis.losses import loss_findings
from tests.parity.pairs.example import floats
from tests.parity.small import usual_jax  # noqa: F401

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
