"""Feature maps: the output of any layer by its name, without a change to the network.

feature_maps(network, variables, images[:8], ["conv1", "fc3"])  # {"conv1": float32 [8, 32, 32, 32], "fc3": [8, 512]}
"""

import difflib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from jaxcnn.errors import UserError
from jaxcnn.layers import check_images, scale_pixels
from jaxcnn.networks import NETWORKS, Network, Variables, initial_variables
from jaxcnn.platform import check_process

IMAGE = (32, 32, 3)  # what our networks are trained on


def _outputs(network: Network, variables: Variables, images: Array) -> OrderedDict[str, Any]:
    """Compute every layer's output. It is traced: unused outputs cost nothing, since XLA drops them."""
    scaled = scale_pixels(images, jnp.result_type(*jax.tree.leaves(variables)))
    _, state = network.apply(variables, scaled, capture_intermediates=lambda module, _: bool(module.path))
    layers = flatten_dict(state["intermediates"])
    # An OrderedDict, since JAX returns a dict with its keys sorted.
    calls = {"/".join(path[:-1]): outputs[-1] for path, outputs in layers.items() if path[-1] == "__call__"}
    return OrderedDict({"input": scaled, **calls})


@partial(jax.jit, static_argnames=("network", "layers"))
def _selected(network: Network, variables: Variables, images: Array, layers: tuple[str, ...]) -> list[Array]:
    outputs = _outputs(network, variables, images)
    check_layers(layers, outputs)
    return [outputs[name] for name in layers]


def check_layers(layers: Iterable[str], known: Collection[str]) -> None:
    """Raise UserError naming the first of `layers` that is not known, and the nearest that is."""
    for name in layers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            todo = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"no layer {name!r} in this network", "--layers", todo)


def layer_shapes(network: Network, size: Any = 32) -> dict[str, tuple[int, ...]]:
    """List the layers in order of execution, `input` first, with the shape of each one's output for one image."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"not a network but {network!r:.60}; give a Linen module, such as CNN()")
    if type(size) is not int or size < 1:
        raise ValueError(f"size is {size!r:.40}; give the side of the images in pixels")
    variables = jax.eval_shape(partial(initial_variables, network), jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    try:
        outputs = jax.eval_shape(partial(_outputs, network), variables, images)
    except Exception as problem:  # Flax's, JAX's or the layer's own
        what = f"this network takes no images of {size} x {size} ({problem!s:.150})"
        raise ValueError(f"{' '.join(what.split())}; give the size that it was made for") from problem
    return {name: output.shape[1:] for name, output in outputs.items()}


def feature_maps(
    network: Network, variables: Variables, images: Any, layers: Sequence[str]
) -> dict[str, Float[Array, "n ..."]]:
    """Compute the outputs of layers for a batch, dropout off, compiled without the layers that they do not need.

    network: any Linen module of images scaled to 0..1.  images: uint8 [n, h, w, c], 32 x 32 in colour for one of ours.
    layers: paths, such as `block1/conv`, of `layer_shapes`.
    Return float32 (float64 if the parameters are) in the order of `layers`; the last output of one called repeatedly.
    Raise UserError for a layer that does not exist, TypeError or ValueError for other images.
    """
    check_process()
    check_images(images)
    # Of another size, a network may still give an answer, which means nothing.
    if type(network) in NETWORKS.values() and images.shape[1:] != IMAGE:
        found = f"images are {images.dtype}{list(images.shape)}"
        raise ValueError(f"{found}, this network takes [n, 32, 32, 3]; jaxcnn.pictures.prepared makes them so")
    if isinstance(layers, str):
        raise TypeError(f"layers are {layers!r:.60}, which is one name; give a list: [{layers!r:.60}]")
    layers = tuple(layers)
    outputs = _selected(network, variables, jnp.asarray(images), layers)
    # bfloat16 is widened outside of jit: inside, XLA would leave its rounding out.
    wide = [x if x.dtype.itemsize >= 4 else x.astype(jnp.float32) for x in outputs]
    return dict(zip(layers, wide, strict=True))


def batched(
    network: Network, variables: Variables, images: Any, layers: Sequence[str], batch_size: int = 64
) -> Iterator[dict[str, Float[np.ndarray, "b ..."]]]:
    """Compute `feature_maps` of a data set, memory-mapped if need be: one program for all batches, the last smaller."""
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r:.40}; give 1 or more")
    batch_size = min(batch_size, max(len(images), 1))
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        maps = feature_maps(network, variables, np.resize(batch, (batch_size, *batch.shape[1:])), layers)
        yield {name: np.asarray(array)[: len(batch)] for name, array in maps.items()}


def as_maps(output: Float[np.ndarray, "*axes c"]) -> Float[np.ndarray, "h w c"]:
    """Give one image's output the three axes of a map: a dense layer's becomes [1, 1, c]."""
    return output.reshape((1,) * (3 - output.ndim) + output.shape)
