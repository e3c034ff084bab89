"""The benchmark's PyTorch programs see what the recipe says; its optimizer is the twin's, which parity compares."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity.twins.speedrun import Speedrun as Twin
from tests.scripts.commands import module

Case = module("benchmark").Case
import torch_contenders  # noqa: E402  # found beside the benchmark

CASE = Case("training", 3, "speedrun", size=19)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_an_image_is_moved_by_at_most_two_pixels_and_mirrored_as_asked(order):
    torch.manual_seed(0)
    images = torch.rand(60, 3, 8, 8).contiguous(memory_format=order)
    chosen, mirrored = torch.randint(60, (500,)), torch.rand(500) < 0.5
    taken = torch_contenders.moved_and_mirrored(images)(chosen, mirrored)
    assert taken.is_contiguous(memory_format=order)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")[chosen]
    padded = torch.where(mirrored[:, None, None, None], padded.flip(-1), padded)
    moves = [(a, b) for a in range(5) for b in range(5)]
    found = [[bool((padded[i, :, a : a + 8, b : b + 8] == taken[i]).all()) for a, b in moves] for i in range(500)]
    assert np.array(found).sum(axis=1).tolist() == [1] * 500
    assert np.array(found).any(axis=0).all()  # each of the 25 moves is taken


def test_speedrun_s_loop_resizes_and_mirrors_alternately(monkeypatch):
    seen, flips = [], []
    twin = Twin(2, 3, 4)

    def forward(batch):
        seen.append(tuple(batch.shape))
        return twin(batch)

    def watched(images):
        take = take_(images)
        return lambda chosen, mirrored: (
            flips.append(dict(zip(chosen.tolist(), mirrored.tolist(), strict=True))) or take(chosen, mirrored)
        )

    take_ = torch_contenders.moved_and_mirrored
    monkeypatch.setattr(torch_contenders, "moved_and_mirrored", watched)
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    steps = torch_contenders.speedrun(twin, forward, torch.rand(6, 3, 32, 32), torch.arange(6), CASE)
    for _ in range(4):
        next(steps)
    assert seen == [(3, 3, 19, 19)] * 4
    first, second = flips[0] | flips[1], flips[2] | flips[3]
    assert first == {image: not is_mirrored for image, is_mirrored in second.items()}
    assert len(first) == 6
    for name, parameter in twin.named_parameters():
        assert not torch.equal(parameter, before[name]), name
