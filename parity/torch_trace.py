"""A PyTorch module at work: inputs and outputs of every call of every submodule, with given dropout masks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from jaxcnn.files import NamedArrays
from parity.flax_trace import unique

Calls = dict[str, tuple[torch.Tensor, torch.Tensor]]


def run(
    module: nn.Module, parameters: Mapping[str, torch.Tensor], x: torch.Tensor, masks: NamedArrays
) -> tuple[torch.Tensor, Calls]:
    """Call a module with other parameters than its own; return its output and each call's first input and output.

    Calls are in the order in which they end. A flattened image is given as Flax has it, channels last. Each dropout
    drops what its mask, channels last, does not keep; without a mask it is off.
    """
    calls: Calls = {}

    def keep(path: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        name = unique(path.replace(".", "/"), calls)
        if isinstance(layer, nn.Dropout):
            output = inputs[0]
            if name in masks:
                output = output * channels_first(masks[name]).to(output.dtype) / (1 - layer.p)
        calls[name] = inputs[0], inputs[0].movedim(1, -1).flatten(1) if isinstance(layer, nn.Flatten) else output
        return output

    hooks = [layer.register_forward_hook(partial(keep, path)) for path, layer in module.named_modules() if path]
    try:
        return torch.func.functional_call(module, dict(parameters), (x,)), calls
    finally:
        for hook in hooks:
            hook.remove()


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Give an array [n, h, w, c] as a tensor [n, c, h, w]; rows stay rows."""
    return torch.from_numpy(np.array(array)).movedim(-1, 1).contiguous()


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """Give a tensor [n, c, h, w] as an array [n, h, w, c]; rows stay rows."""
    return tensor.detach().movedim(1, -1).numpy().copy()
