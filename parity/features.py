"""The feature maps of PyTorch's twin, by forward hooks, laid out as those of `jaxcnn.features`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from jaxcnn import files
from jaxcnn.model import Params, model_for
from parity.torch_model import CNN
from parity.weights import carry


def twin(params: Params) -> CNN:
    """The PyTorch network with these parameters, in their type, dropout off."""
    widths = model_for(params)
    arrays = {name: np.asarray(leaf) for name, leaf in files.flat_names(params).items()}
    tensors = {name: torch.from_numpy(array) for name, array in carry(arrays, "flax", "torch").items()}
    network = CNN(widths.channels, widths.hidden, widths.classes).to(tensors["fc4.bias"].dtype).eval()
    network.load_state_dict(tensors)
    return network


@torch.no_grad()
def feature_maps(
    params: Params, images: UInt8[np.ndarray, "n h w 3"], layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """What the named modules put out, [n, h, w, c] or [n, c]; `flat` in the order (H, W, C) that Flax has it in."""
    network = twin(params)
    dtype = network.fc4.bias.dtype
    found = {"input": torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255}
    # NumPy's quotient, as in ToTensor's and jaxcnn's: both round a / 255 correctly.

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            found[name] = inputs[0].permute(0, 2, 3, 1).flatten(1) if isinstance(module, nn.Flatten) else output

        return hook

    for name, module in network.named_children():
        module.register_forward_hook(keep(name))
    network(found["input"])
    images_last = {name: array.permute(0, 2, 3, 1) if array.ndim == 4 else array for name, array in found.items()}
    return {name: images_last[name].contiguous().numpy() for name in layers}
