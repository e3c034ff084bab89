"""A network's variables as a file, in Flax's naming, and a trained network to use: load, predict, read the classes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32

from jaxcnn import files, kinds, networks, pictures
from jaxcnn.data.official import CLASS_NAMES
from jaxcnn.errors import UserError
from jaxcnn.layers import widened
from jaxcnn.networks import Network, Variables
from jaxcnn.paths import at_home
from jaxcnn.platform import check_process
from jaxcnn.progress import say
from jaxcnn.train import predict_logits

FORMAT = "jaxcnn-weights/1"
FILE = "weights.safetensors"
FLOATS = ("float32", "float64", "float16", "bfloat16")
NOT_THESE = "name the weights of one of our networks"


@dataclass(frozen=True)
class Weights:
    """A trained network and what is known about it.

    network: what the variables are of.  variables: `{"params": ...}` and whatever else the network has.
    class_names: in the order of the logits, empty if unknown.  dataset: what it was trained on, None if unknown;
    images: the mark of those images.
    """

    network: Network
    variables: Variables
    class_names: tuple[str, ...] = ()
    dataset: str | None = None
    images: str | None = None

    def predict(self, images: Any, largest: Any = 1) -> Float32[np.ndarray, "n classes"]:
        """Compute the probabilities of the classes, dropout off, of one image or many, in any form.

        images: arrays, PIL images, picture files or lists of these, all that `pictures.prepared` takes and refuses.
        largest: what is white in arrays of floats, 1 or 255.
        """
        check_process()
        ready = pictures.prepared(images, largest)
        return np.asarray(_probabilities(self.network, self.variables, ready), np.float32)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in networks.sizes(self.network).items())
        known = shorten(", ".join(self.class_names), 100, placeholder=" ...") or "unknown"
        count = f"{networks.parameter_count(self.variables):,} parameters"
        return f"Weights({type(self.network).__name__}({sizes}), {count}, classes: {known}; data set: {self.dataset})"

    def __eq__(self, other: object) -> bool:
        """Compare all fields, arrays by value; the default comparison fails, since arrays have no one truth value."""
        if not isinstance(other, Weights):
            return NotImplemented
        mine, theirs = networks.named(self.variables), networks.named(other.variables)
        known = [(w.network, w.class_names, w.dataset, w.images) for w in (self, other)]
        is_same = known[0] == known[1] and mine.keys() == theirs.keys()
        return is_same and all(np.array_equal(array, theirs[name]) for name, array in mine.items())

    @property
    def params(self) -> Variables:
        """Return the parameters among the variables."""
        return self.variables["params"]

    @property
    def dtype(self) -> str:
        """Name the type of the parameters."""
        return jax.tree.leaves(self.params)[0].dtype.name


@partial(jax.jit, static_argnums=0)  # one program for one image: a second would cost as much as a tenth of the network
def _probabilities(network: Network, variables: Variables, images: Array) -> Array:
    return jax.nn.softmax(widened(predict_logits(network, variables, images)))


def save_weights(path: Path, weights: Weights) -> None:
    """Write variables as safetensors, entries named `conv1/kernel`, and beside them what else is known."""
    files.save_arrays(at_home(path), networks.named(weights.variables), metadata_of(weights, "flax"))


def load(path: str | Path) -> Weights:
    """Load the weights of a run directory or a safetensors file in Flax's naming; UserError if they are not whole."""
    file = weights_file(path)
    arrays, metadata = read_arrays(file)
    if any(name.endswith(".weight") for name in arrays):
        raise UserError("it has PyTorch's names", file, kinds.PYTORCH.todo)
    network = network_of(metadata, lambda name, axes: shape_of(arrays, name, axes, file), file)
    check_arrays(arrays, networks.variable_shapes(network), file)
    return make_weights(network, arrays, metadata)


def read_arrays(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file that is not a run's checkpoint."""
    arrays, metadata = files.read_arrays(file)
    if metadata.get("format", "").startswith("jaxcnn-checkpoint"):
        run = file.absolute().parent.parent
        raise UserError("a checkpoint, to resume a training from", file, f"name the run, {run}, for its weights")
    return arrays, metadata


def weights_file(path: str | Path) -> Path:
    """Return the file itself, or that of a run directory."""
    file = at_home(path)
    if file.is_dir():
        file = file / FILE
        if not file.exists():
            raise UserError(f"no {FILE} in this directory", path, "name a run directory that has finished an epoch")
    return file


def metadata_of(weights: Weights, naming: str) -> dict[str, str]:
    """Make the metadata of a file whose arrays have names of a naming, `flax` or `torch`."""
    network = networks.describe(weights.network)
    known = {"network": network, "class_names": weights.class_names, "dataset": weights.dataset}
    known |= {"images": weights.images} if weights.images else {}
    return {"format": FORMAT, "naming": naming, **{name: json.dumps(value) for name, value in known.items()}}


def make_weights(network: Network, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Weights:
    """Make weights from arrays in Flax's naming; classes and data set stay unknown for files of other programs."""
    variables = networks.nested({name: _aligned(array) for name, array in arrays.items()})
    weights = Weights(network.clone(param_dtype=next(iter(arrays.values())).dtype), variables)
    try:
        class_names, dataset = json.loads(metadata["class_names"]), json.loads(metadata["dataset"])
        images = json.loads(metadata.get("images", "null"))
        known: dict[str, Any] = {"dataset": dataset and str(dataset), "images": images and str(images)}
        return replace(weights, class_names=tuple(map(str, class_names)), **known)
    except (KeyError, ValueError, TypeError, RecursionError):
        return weights


def _aligned(array: np.ndarray) -> np.ndarray:
    """Copy an array to an address divisible by 64, where JAX on a CPU uses it in place; else each call copies it.

    One image's classes take 1.7 ms with copies, 0.5 without.
    """
    room = np.empty(array.nbytes + 63, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def network_of(metadata: Mapping[str, str], shape: Callable[[str, int], tuple[int, ...]], where: object) -> Network:
    """Make the network that a file's metadata names, or else the first of ours that its shapes fit.

    shape: (name in Flax's naming, number of axes) -> the shape of that entry, or UserError.
    """
    try:
        if network := networks.build(json.loads(metadata.get("network", "null"))):
            return network
    except KeyError as problem:
        raise UserError(f"a network of another version: {problem!s:.40}", where, "use that version") from None
    except (ValueError, RecursionError):
        pass
    problems = []
    for kind in networks.NETWORKS.values():
        try:
            return kind.from_shapes(shape)
        except UserError as problem:
            problems.append(problem)
    raise problems[0]


def shape_of(arrays: Mapping[str, np.ndarray], name: str, axes: int, where: object) -> tuple[int, ...]:
    """Return the shape of an entry, which gives a network's widths; UserError if it does not have `axes` axes."""
    shape = arrays[name].shape if name in arrays else None
    if shape is None or len(shape) != axes or 0 in shape:
        names = ", ".join(list(arrays)[:3]) or "no entries"
        got = list(shape) if shape is not None else f"nothing among {names}, ..."
        raise UserError(f"{name}: expected {axes} axes, got {got}", where, NOT_THESE)
    return shape


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise UserError naming the first entry that is missing, extra, misshapen, of another type or not finite."""
    for name in {**expected, **arrays}:
        if name not in arrays or name not in expected or arrays[name].shape != expected[name]:
            shape = list(expected[name]) if name in expected else "no such entry"
            others = [other for other in arrays if other not in expected][:3]
            nothing = f"nothing but {', '.join(others)}, ..." if others else "nothing"
            got = list(arrays[name].shape) if name in arrays else nothing
            raise UserError(f"{name}: expected {shape}, got {got}", where, NOT_THESE)
        if arrays[name].dtype.name not in FLOATS:
            raise UserError(f"{name}: expected {' or '.join(FLOATS)}, got {arrays[name].dtype}", where, NOT_THESE)
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{name}: expected finite numbers, got NaN or infinity", where, "use an earlier copy")
    dtypes = {array.dtype.name for array in arrays.values()}
    if len(dtypes) > 1:
        raise UserError(f"expected entries of one type, got {' and '.join(sorted(dtypes))}", where, NOT_THESE)


def check_classes(weights: Weights, class_names: tuple[str, ...], where: object) -> None:
    """Raise UserError if the network does not have as many outputs as the data set has classes."""
    if weights.network.classes != len(class_names):
        what = f"the network has {weights.network.classes} classes, the data set {len(class_names)}"
        raise UserError(what, where, "choose another --dataset")


def check_names(weights: Weights, dataset: str, class_names: tuple[str, ...], where: object) -> None:
    """Raise UserError if the network was trained on another folder of pictures, with other classes."""
    others = ", ".join(sorted({*weights.class_names} ^ {*class_names})[:3])
    if dataset == weights.dataset == "folder" and weights.class_names not in ((), class_names):
        told = f"{others} on one side only" if others else "in another order"
        what = f"not the classes that the network was trained on: {told}"
        raise UserError(what, where, "name a folder with the same ones, or train another run")


def names_of_classes(weights: Weights, dataset: str) -> tuple[str, ...]:
    """Give the names of the classes: the weights' own, else CIFAR-10's, with a note, else numbers."""
    known = weights.class_names or (CLASS_NAMES if dataset == "cifar10" else ())
    if len(known) != weights.network.classes:
        return tuple(map(str, range(weights.network.classes)))
    if not weights.class_names:
        say("note: the weights do not say what they were trained on: CIFAR-10 is assumed; --dataset names another")
    return known
