"""Where a network's derivative jumps, and for which images rounding decides differently."""

from typing import Any

import numpy as np
from torch import nn

from jaxcnn.files import NamedArrays
from parity.pair import Pair, Pass
from parity.torch_trace import channels_first, channels_last


def decisions(pair: Pair, result: Pass) -> NamedArrays:
    """Return what the derivative depends on: the side of each ReLU, and which element of each window is its maximum."""
    sides = {}
    for name, x in result.inputs.items():
        module = pair.torch_module.get_submodule(name.partition("#")[0].replace("/", "."))
        if isinstance(module, nn.ReLU):
            sides[name] = x > 0
        if isinstance(module, nn.AdaptiveMaxPool2d):
            sides[name] = channels_last(
                nn.functional.adaptive_max_pool2d_with_indices(channels_first(x), module.output_size)[1]
            )
        if isinstance(module, nn.MaxPool2d):
            window: Any = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            sides[name] = channels_last(nn.functional.max_pool2d_with_indices(channels_first(x), *window)[1])
    return sides


def other_decisions(pair: Pair, result: Pass, truth: Pass) -> np.ndarray:
    """Count the places in which each image's decisions differ from the truth's. [n]."""
    ours, theirs = decisions(pair, result), decisions(pair, truth)
    return sum((ours[name] != theirs[name]).reshape(len(ours[name]), -1).sum(axis=1) for name in ours)
