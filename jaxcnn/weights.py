"""Parameters as a file, in Flax's naming, and a trained network to use: load, predict, read the classes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, UInt8

from jaxcnn import files
from jaxcnn.errors import UserError
from jaxcnn.model import Params, initial_params, model_for
from jaxcnn.train import predict_logits

FORMAT = "jaxcnn-weights/1"
FILE = "weights.safetensors"


@dataclass(frozen=True)
class Weights:
    """Parameters and what is known about them.

    params: as `jaxcnn.CNN` has them.  class_names: in the order of the logits, empty where unknown.
    dataset: what they were trained on, None where unknown.
    """

    params: Params
    class_names: tuple[str, ...] = ()
    dataset: str | None = None

    def predict(self, images: UInt8[np.ndarray, "n 32 32 3"]) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes, dropout off."""
        logits = predict_logits(model_for(self.params), self.params, jnp.asarray(images))
        return np.asarray(jax.nn.softmax(logits))


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights as safetensors, entries named `conv1/kernel`, with the class names beside them."""
    arrays = {name: np.asarray(leaf) for name, leaf in files.flat_names(weights.params).items()}
    known = {"class_names": json.dumps(weights.class_names), "dataset": json.dumps(weights.dataset)}
    files.save_arrays(path, arrays, {"format": FORMAT, "naming": "flax", **known})


def load(path: str | Path) -> Weights:
    """The weights of a run directory, or of a safetensors file in Flax's naming; UserError where they are not whole."""
    file = Path(path)
    if file.is_dir():
        file = file / FILE
        if not file.exists():
            raise UserError(f"no {FILE} in this directory", path, "name a run directory that has finished an epoch")
    arrays, metadata = files.read_arrays(file)
    params = checked_params({tuple(name.split("/")): array for name, array in arrays.items()}, file)
    return Weights(params, *known_of(metadata))


def known_of(metadata: Mapping[str, str]) -> tuple[tuple[str, ...], str | None]:
    """Class names and data set in a file's metadata; nothing where another program wrote it."""
    try:
        names, dataset = json.loads(metadata["class_names"]), json.loads(metadata["dataset"])
        return tuple(map(str, names)), dataset and str(dataset)
    except (KeyError, ValueError, TypeError):
        return (), None


def checked_params(arrays: Mapping[tuple[str, ...], np.ndarray], where: object) -> Params:
    """Arrays named (layer, kind) as parameters; UserError naming the first entry that does not fit."""
    widths = {}
    for key, axes in {("conv1", "kernel"): 4, ("fc4", "kernel"): 2}.items():
        if key not in arrays or arrays[key].ndim != axes:
            raise UserError(f"no {'/'.join(key)} with {axes} axes", where, "name the weights of this network")
        widths[key] = arrays[key]
    model = model_for(unflatten_dict(widths))
    expected = files.flat_names(jax.eval_shape(lambda key: initial_params(model, key), jax.random.key(0)))
    found = {"/".join(name): array for name, array in arrays.items()}
    for name in {**expected, **found}:
        if name not in found or name not in expected or found[name].shape != expected[name].shape:
            wanted = list(expected[name].shape) if name in expected else "no such entry"
            came = list(found[name].shape) if name in found else "nothing"
            raise UserError(f"{name}: expected {wanted}, came {came}", where, "name the weights of this network")
        if not np.isfinite(found[name].astype(np.float32)).all():
            raise UserError(f"{name}: expected finite numbers, came NaN or infinity", where, "use an earlier copy")
    return unflatten_dict(dict(arrays))
