"""The feature maps of PyTorch's twin, laid out as those of `jaxcnn.features`."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8

from jaxcnn.model import Params
from parity.torch_model import activations, channels_last, pixels, twin


@torch.no_grad()
def feature_maps(
    params: Params, images: UInt8[np.ndarray, "n h w 3"], layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """What the named modules put out, [n, h, w, c] or [n, c]; `flat` in the order (H, W, C) that Flax has it in."""
    dtype = torch.float64 if params["fc4"]["bias"].dtype == np.float64 else torch.float32
    found = activations(twin(params, dtype), pixels(images, dtype))
    return {name: channels_last(found[name]) for name in layers}
