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
from jaxcnn.model import CNN, Params, initial_params, model_for
from jaxcnn.train import predict_logits

FORMAT = "jaxcnn-weights/1"
FILE = "weights.safetensors"
FLOATS = ("float32", "float64", "float16", "bfloat16")
WRONG = "name the weights of this network"


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
    files.save_arrays(path, files.flat_names(weights.params), metadata_of(weights, "flax"))


def load(path: str | Path) -> Weights:
    """The weights of a run directory, or of a safetensors file in Flax's naming; UserError where they are not whole."""
    file = weights_file(path)
    arrays, metadata = files.read_arrays(file)
    return Weights(checked_params(arrays, file), *known_of(metadata))


def weights_file(path: str | Path) -> Path:
    """The file itself, or that of a run directory."""
    file = Path(path)
    if file.is_dir():
        file = file / FILE
        if not file.exists():
            raise UserError(f"no {FILE} in this directory", path, "name a run directory that has finished an epoch")
    return file


def metadata_of(weights: Weights, naming: str) -> dict[str, str]:
    """What a file says beside its arrays, whose names are `flax` or `torch` ones."""
    known = {"class_names": json.dumps(weights.class_names), "dataset": json.dumps(weights.dataset)}
    return {"format": FORMAT, "naming": naming, **known}


def known_of(metadata: Mapping[str, str]) -> tuple[tuple[str, ...], str | None]:
    """Class names and data set in a file's metadata; nothing where another program wrote it."""
    try:
        names, dataset = json.loads(metadata["class_names"]), json.loads(metadata["dataset"])
        return tuple(map(str, names)), dataset and str(dataset)
    except (KeyError, ValueError, TypeError):
        return (), None


def checked_params(arrays: Mapping[str, np.ndarray], where: object) -> Params:
    """Arrays named `conv1/kernel` as parameters; UserError naming the first entry that does not fit."""
    channels = shape_of(arrays, "conv1/kernel", 4, where)[-1]
    hidden, classes = shape_of(arrays, "fc4/kernel", 2, where)
    check_arrays(arrays, parameter_shapes(CNN(channels, hidden, classes)), where)
    return unflatten_dict(dict(arrays), sep="/")


def check_classes(params: Params, class_names: tuple[str, ...], where: object) -> None:
    """UserError where the network has not as many outputs as the data set has classes."""
    outputs = len(params["fc4"]["bias"])
    if outputs != len(class_names):
        raise UserError(f"fc4: expected {len(class_names)} classes, came {outputs}", where, "choose another --dataset")


def parameter_shapes(model: CNN) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters by their names, `conv1/kernel`."""
    params = jax.eval_shape(lambda key: initial_params(model, key), jax.random.key(0))
    return {name: leaf.shape for name, leaf in files.flat_names(params).items()}


def shape_of(arrays: Mapping[str, np.ndarray], name: str, axes: int, where: object) -> tuple[int, ...]:
    """The shape of the entry that a network's widths are read off; UserError where it has not so many axes."""
    shape = arrays[name].shape if name in arrays else None
    if shape is None or len(shape) != axes or 0 in shape:
        came = list(shape) if shape is not None else f"nothing among {', '.join(list(arrays)[:3]) or 'no entries'}, ..."
        raise UserError(f"{name}: expected {axes} axes, came {came}", where, WRONG)
    return shape


def check_arrays(found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], where: object) -> None:
    """UserError naming the first entry that is missing, extra, misshapen, of another type or not finite."""
    dtypes = {array.dtype.name for array in found.values()}
    for name in {**expected, **found}:
        if name not in found or name not in expected or found[name].shape != expected[name]:
            wanted = list(expected[name]) if name in expected else "no such entry"
            came = list(found[name].shape) if name in found else "nothing"
            raise UserError(f"{name}: expected {wanted}, came {came}", where, WRONG)
        if found[name].dtype.name not in FLOATS:
            raise UserError(f"{name}: expected {' or '.join(FLOATS)}, came {found[name].dtype}", where, WRONG)
        if not np.isfinite(found[name]).all():
            raise UserError(f"{name}: expected finite numbers, came NaN or infinity", where, "use an earlier copy")
    if len(dtypes) > 1:
        raise UserError(f"expected entries of one type, came {' and '.join(sorted(dtypes))}", where, WRONG)
