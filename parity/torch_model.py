"""The PyTorch twin: the tutorial's class, its widths arguments, with dropout masks that can be given."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from jaxcnn import files
from jaxcnn.model import Params, model_for
from parity.weights import carry


class CNN(nn.Module):
    """The tutorial's network in PyTorch; the names of its modules are the names of `jaxcnn.CNN`'s layers.

    channels: of both convolutions.  hidden: width of `fc3`.  classes: width of `fc4`.
    """

    def __init__(self, channels: int = 32, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, kernel_size=(3, 3), stride=1, padding=1)
        self.act1 = nn.ReLU()
        self.drop1 = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=(3, 3), stride=1, padding=1)
        self.act2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(kernel_size=(2, 2))
        self.flat = nn.Flatten()
        self.fc3 = nn.Linear(channels * 16 * 16, hidden)
        self.act3 = nn.ReLU()
        self.drop3 = nn.Dropout(0.5)
        self.fc4 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of images [n, 3, 32, 32] scaled to 0..1."""
        x = self.drop1(self.act1(self.conv1(x)))
        x = self.pool2(self.act2(self.conv2(x)))
        x = self.drop3(self.act3(self.fc3(self.flat(x))))
        return self.fc4(x)


class GivenDropout(nn.Dropout):
    """Dropout with a mask from elsewhere, since no other framework draws PyTorch's numbers; without one, none."""

    keep: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X where the mask keeps it, scaled by 1 / (1 - p), as `torch.nn.functional.dropout` does."""
        return x if self.keep is None else x * self.keep.to(x.dtype) / (1 - self.p)


def tensors(params: Params, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Flax parameters as a `state_dict`."""
    arrays = carry({name: np.array(leaf) for name, leaf in files.flat_names(params).items()}, "flax", "torch")
    return {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}


def twin(params: Params, dtype: torch.dtype, keep: Mapping[str, np.ndarray] | None = None) -> CNN:
    """The PyTorch network with these parameters, and with these dropout masks (by layer, channels last) or none."""
    widths = model_for(params)
    with torch.device("meta"):  # initial weights would be drawn for nothing
        network = CNN(widths.channels, widths.hidden, widths.classes)
    network.drop1, network.drop3 = GivenDropout(network.drop1.p), GivenDropout(network.drop3.p)
    network.load_state_dict(tensors(params, dtype), assign=True)
    set_masks(network, keep or {})
    return network


def set_masks(network: CNN, keep: Mapping[str, np.ndarray]) -> None:
    """Give the dropout layers of a twin their masks."""
    for name, mask in keep.items():
        network.get_submodule(name).keep = channels_first(mask)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """[n, h, w, c] as [n, c, h, w]; rows stay rows."""
    tensor = torch.from_numpy(np.array(images))
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """[n, c, h, w] as [n, h, w, c]; rows stay rows."""
    tensor = tensor.detach()
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy().copy()


def pixels(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Images as the network takes them: uint8 divided by 255, as `ToTensor` does."""
    tensor = channels_first(images)
    return tensor.to(dtype) / 255 if tensor.dtype == torch.uint8 else tensor.to(dtype)


def activations(network: CNN, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of all modules by name in order of execution, `input` first; `flat` as Flax has it, channels last."""
    found = {"input": x}
    hooks = []
    for name, module in network.named_children():

        def keep(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
            flat = isinstance(module, nn.Flatten)
            found[name] = inputs[0].permute(0, 2, 3, 1).flatten(1) if flat else output

        hooks.append(module.register_forward_hook(keep))
    network(x)
    for hook in hooks:
        hook.remove()
    return found
