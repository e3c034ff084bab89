"""`parity.check` on models that others wrote: which links agree, and why the others do not. `make transformers`."""

import pytest
import torch

from parity import check
from tests.transformers import families

torch.set_num_threads(1)
TRAINED = {"step", "trajectory"}
VARIANCE = {"statistics", "trajectory"}  # Flax's batch norm keeps the biased variance
MASKS = {"masks", *TRAINED}  # Flax's attention drops out the same for all images and heads
PADDING = {"gradients", *MASKS}  # PyTorch's embedding has no gradient at `padding_idx`
# What each port does otherwise than its original, in float64.
DIFFERENT = {
    "resnet": VARIANCE,
    "resnet_basic": VARIANCE,
    "regnet": {"statistics", *TRAINED},  # and the norms inside its blocks stay in evaluation mode
    "vit": set(),
    "beit": TRAINED,  # drop path by uniform numbers, whose masks cannot be shared
    "dinov2": set(),
    "clip_vision": set(),
    "clip_text": set(),
    "clip": set(),
    "bert": MASKS,
    "bert_masked": MASKS,
    "roberta": PADDING,
    "roberta_prelayernorm": PADDING,
    "xlm_roberta": PADDING,
    "electra": MASKS,
    "albert": set(),
    "distilbert": set(),
    "big_bird": MASKS,
    "gpt2": MASKS,
    "opt": set(),
    "bart": set(),
    "mbart": set(),
    "whisper": set(),
}
# Some part of these is computed in float32, in both or in one: softmax, RMSNorm's mean, the table of rotations.
SINGLE = ("gpt_neo", "gptj", "bloom", "llama", "mistral", "gemma")


def checked(name):
    example = getattr(families, name)()
    return check(*example[:2], *example.inputs, precision=("float64",), steps=2, **example.options)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_family_agrees_but_for_what_is_known(name):
    report = checked(name)
    assert not report.table.doubts
    assert not report.table.left
    assert {one.link for one in report.failed} == DIFFERENT[name]


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_computed_in_float32_is_told_from_a_mistake(name):
    report = checked(name)
    assert not report.table.left
    assert 1e-10 < max(one.error for one in report.failed) < 1e-5
    assert "float32's rounding" in str(report)


def test_a_mistake_in_a_port_is_noticed():
    """Its window is a token longer."""
    assert max(one.error for one in checked("mistral_window").failed if one.link == "outputs") > 0.1
