"""The PyTorch twin: the tutorial's class, its widths arguments, with the dropout masks of `jaxcnn`."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import torch
from jaxtyping import Array, Float, Key, UInt8
from torch import nn

from jaxcnn import layers
from jaxcnn.model import Params, model_for
from parity.weights import as_state_dict


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


class SharedDropout(nn.Dropout):
    """Dropout with the mask of JAX's layer `index`, since no framework draws another's numbers; without a key, none."""

    index: int
    key: Key[Array, ""] | None = None

    def mask(self, key: Key[Array, ""], shape: tuple[int, ...]) -> np.ndarray:
        """What is kept of a batch [n, h, w, c] or [n, c]."""
        return np.asarray(layers.keep_mask(jax.random.fold_in(key, self.index), self.p, shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X where the mask keeps it, scaled by 1 / (1 - p), as `torch.nn.functional.dropout` does."""
        if self.key is None:
            return x
        mask = channels_first(self.mask(self.key, x.movedim(1, -1).shape))
        return x * mask.to(x.dtype) / (1 - self.p)


def twin(params: Params, dtype: torch.dtype, key: Key[Array, ""] | None = None) -> CNN:
    """The PyTorch network with these parameters, and with the dropout masks of `key` or none."""
    widths = model_for(params)
    with torch.device("meta"):  # initial weights would be drawn for nothing
        network = CNN(widths.channels, widths.hidden, widths.classes)
    dropouts = [(name, layer.p) for name, layer in network.named_children() if isinstance(layer, nn.Dropout)]
    for index, (name, rate) in enumerate(dropouts):
        setattr(network, name, layer := SharedDropout(rate))
        layer.index, layer.key = index, key
    state = {name: torch.from_numpy(array).to(dtype) for name, array in as_state_dict(params).items()}
    network.load_state_dict(state, assign=True)
    return network


def channels_first(images: np.ndarray) -> torch.Tensor:
    """[n, h, w, c] as [n, c, h, w]; rows stay rows."""
    return torch.from_numpy(np.array(images)).movedim(-1, 1).contiguous()


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """[n, c, h, w] as [n, h, w, c]; rows stay rows."""
    return tensor.detach().movedim(1, -1).numpy().copy()


def pixels(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Images as the network takes them: uint8 divided by 255, as `ToTensor` does."""
    tensor = channels_first(images)
    return tensor.to(dtype) / 255 if tensor.dtype == torch.uint8 else tensor.to(dtype)


def mean_loss(logits: torch.Tensor, labels: np.ndarray, real: np.ndarray) -> torch.Tensor:
    """The mean cross entropy of the images that are real."""
    return nn.functional.cross_entropy(logits[real], torch.from_numpy(labels[real]).long())


def activations(network: CNN, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of all modules by name in order of execution, `input` first; `flat` as Flax has it, channels last."""
    found = {"input": x}

    def keep(name: str, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        found[name] = inputs[0].movedim(1, -1).flatten(1) if isinstance(module, nn.Flatten) else output

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in network.named_children()]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def feature_maps(
    params: Params, images: UInt8[np.ndarray, "n h w 3"], layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """`jaxcnn.features.feature_maps` of the twin: [n, h, w, c] or [n, c] for each layer."""
    dtype = torch.float64 if params["fc4"]["bias"].dtype == np.float64 else torch.float32
    found = activations(twin(params, dtype), pixels(images, dtype))
    return {name: channels_last(found[name]) for name in layers}
