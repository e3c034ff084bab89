"""A network as a list of layers that `arithmetic.js` can compute, each with its kind, arrays and inputs."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.features import as_maps
from jaxcnn.layers import flatten, gelu, global_max_pool, max_pool, scale_pixels
from jaxcnn.networks import Network, Variables, initial_variables
from jaxcnn.networks.modules import BatchNorm, Conv, Dense, Dropout, Function, Normalise, Whiten

Arrays = dict[str, np.ndarray]
FUNCTIONS: dict[Callable[..., Any], str] = {  # of a `Function`: its name in arithmetic.js
    nn.relu: "relu",
    gelu: "gelu",
    max_pool: "maxPool",
    global_max_pool: "globalMaxPool",
    flatten: "flatten",
}


class Layer(NamedTuple):
    """A layer of a network.

    kind: the name of its function in arithmetic.js.  inputs: the layers whose outputs it is given, added up.
    shape: of its output, height, width, channels.  arrays: float32.  padding: of a convolution.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, int, int]
    arrays: Arrays
    padding: int = 0


class _Call(NamedTuple):
    module: nn.Module
    given: np.ndarray
    output: np.ndarray


def layers_of(network: Network, variables: Variables) -> tuple[list[Layer], float]:
    """List the layers in order of execution, after the layer `input`; and the factor from the last's output to logits.

    Which layer takes which is found by value, in one pass with random variables. Raise UserError for a network that has
    layers of other kinds, or anything but sums between them.
    """
    calls, logits = _calls(network)
    outputs, layers = {"input": calls.pop("input").output}, []
    for name, call in calls.items():
        kind, arrays, padding = _described(name, call.module, _of_layer(variables, name))
        arrays = {of: np.asarray(array, np.float32) for of, array in arrays.items()}
        shape = as_maps(call.output[0]).shape
        layers.append(Layer(name, kind, _inputs(name, call.given, outputs), shape, arrays, padding))
        outputs[name] = call.output
    last = outputs[layers[-1].name]
    factor = float((logits * last).sum() / (last * last).sum())
    if not _same(logits, factor * last):
        raise UserError("the logits are not a multiple of the last layer's output", type(network).__name__, ADD_IT)
    return layers, factor


ADD_IT = "teach the page the layer, as CONTRIBUTING.md says"


def _calls(network: Network) -> tuple[dict[str, _Call], np.ndarray]:
    """Record each module's input and output for one random image and random variables; and the logits."""
    network = network.clone(dtype=jnp.float32, param_dtype=jnp.float32)  # rounding to 8 bits would hide what is a sum
    modules: dict[str, nn.Module] = {}

    def traced(variables: Variables, images: jax.Array) -> Any:
        arrays = {}

        def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if context.module.path and context.method_name == "__call__":
                name = "/".join(context.module.path)
                modules[name], arrays[name] = context.module, (args[0], output)
            return output

        scaled = scale_pixels(images, network.param_dtype)
        with nn.intercept_methods(record):
            logits = network.apply(variables, scaled)
        return {"input": (scaled, scaled), **arrays}, logits

    shapes = jax.eval_shape(lambda: initial_variables(network, jax.random.key(0)))
    generator = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        """Draw an array. In collections other than the parameters all numbers are positive, as variances are."""
        numbers = generator.normal(size=leaf.shape)
        return np.asarray(numbers if path[0].key == "params" else 0.5 + np.abs(numbers), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    images = generator.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    arrays, logits = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(traced)(variables, jnp.asarray(images)))
    order = ["input", *modules]  # jit returns a dict with its keys sorted
    return {name: _Call(modules.get(name, network), *arrays[name]) for name in order}, logits


def _inputs(name: str, given: np.ndarray, outputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Find the layer whose output this is, the latest if there are several; or the two whose sum it is."""
    latest = list(outputs)[::-1]
    for names in [(one,) for one in latest] + list(combinations(latest, 2)):
        if all(outputs[one].shape == given.shape for one in names) and _same(given, sum(outputs[o] for o in names)):
            return names
    raise UserError(f"what {name} is given is neither a layer's output nor the sum of two", "the network", ADD_IT)


def _same(a: np.ndarray, b: Any) -> bool:
    return bool(np.abs(a - b).max() <= 1e-5 * np.abs(a).max())


def _of_layer(variables: Variables, name: str) -> Arrays:
    """Gather the variables of a layer, of all collections."""
    found: Arrays = {}
    for tree in variables.values():
        for key in name.split("/"):
            tree = tree.get(key, {})
        found |= {of: np.asarray(array) for of, array in tree.items()}
    return found


def _described(name: str, module: nn.Module, own: Arrays) -> tuple[str, Arrays, int]:
    """Give a layer's kind, arrays and padding, from its module and its variables."""
    match module:
        case Conv():
            return "convolution", own, 1
        case Whiten():
            return "convolution", own, 0
        case Dense():
            return "dense", own, 0
        case Dropout():
            return "same", {}, 0
        case Normalise():
            mean = own["mean"]
            return "normalise", {"mean": mean, "scale": 1 / own["deviation"], "bias": np.zeros_like(mean)}, 0
        case BatchNorm():
            scale = 1 / np.sqrt(own["var"].astype(np.float64) + module.epsilon)
            return "normalise", {"mean": own["mean"], "scale": scale, "bias": own["bias"]}, 0
        case Function() if module.function in FUNCTIONS:
            return FUNCTIONS[module.function], {}, 0
    raise UserError(f"{name} is of a kind that the page does not know", type(module).__name__, ADD_IT)
