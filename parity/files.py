"""Weights in every form: run directories, PyTorch's `.pth`, safetensors in either naming. Only `.pth` needs torch."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn import files, progress
from jaxcnn import weights as flax_weights
from jaxcnn.errors import UserError
from jaxcnn.model import CNN, Params
from jaxcnn.weights import WRONG, Weights
from parity.weights import SEPARATOR, Naming, as_params, as_state_dict, carry_shapes

TORCH_SUFFIXES = (".pth", ".pt")
PREFIX = re.compile(r"((module|_orig_mod|model|net|network|params)[./])*")


def load_weights(
    path: str | Path, dtype: str | None = "float32", say: Callable[[str], None] = progress.say
) -> Weights:  # fmt: skip
    """Weights from any form; what nests and prefixes were undone is said. UserError naming what does not fit.

    dtype: what to give them in; None keeps the file's: float16, bfloat16, float32 or float64.
    """
    file = flax_weights.weights_file(path)
    if not file.exists():
        raise UserError("no such file", path, "name a run directory, a .pth or a .safetensors")
    if file.suffix == ".safetensors":
        arrays, metadata = files.read_arrays(file)
    else:
        arrays, metadata = _torch_files(file).read(file, say), {}
    params = _params(_without_prefixes(arrays, file, say), file)
    if dtype is not None:
        params = _cast(params, dtype, file)
    return Weights(params, *flax_weights.known_of(metadata))


def save_weights(
    path: Path, weights: Weights, naming: Naming | None = None, say: Callable[[str], None] = progress.say
) -> None:
    """Write weights, the form chosen by the suffix: whole or not at all, read back and compared before they count.

    naming: `torch` in a `.pth`, always; `flax` in a `.safetensors` unless told otherwise.
    """
    if path.suffix == ".safetensors":
        if naming == "torch":
            files.save_arrays(path, as_state_dict(weights.params), flax_weights.metadata_of(weights, naming))
        else:
            flax_weights.save_weights(path, weights)
    elif path.suffix not in TORCH_SUFFIXES:
        raise UserError(f"the suffix is {path.suffix!r}", path, "end it in .pth, .pt or .safetensors")
    elif naming == "flax":
        raise UserError("a PyTorch file has PyTorch's names", path, "leave --naming out, or take a .safetensors")
    else:
        _torch_files(path).write(path, as_state_dict(weights.params))
        if weights.dataset:
            say(f"note: a {path.suffix} holds no data set and no class names: name it by --dataset {weights.dataset}")


def _params(arrays: Mapping[str, np.ndarray], where: Path) -> Params:
    """Arrays in either naming as parameters, once they are checked against the network that their widths tell."""
    if any(name.endswith("kernel") for name in arrays):
        return flax_weights.checked_params(arrays, where)
    channels = flax_weights.shape_of(arrays, "conv1.weight", 4, where)[0]
    classes, hidden = flax_weights.shape_of(arrays, "fc4.weight", 2, where)
    shapes = flax_weights.parameter_shapes(CNN(channels, hidden, classes))
    flax_weights.check_arrays(arrays, carry_shapes(shapes, "flax", "torch"), where)
    return as_params(arrays)


def _cast(params: Params, dtype: str, where: Path) -> Params:
    """Parameters in another type; UserError where a number is beyond its range."""
    narrow = {}
    for name, array in files.flat_names(params).items():
        with np.errstate(over="ignore"):
            narrow[name] = array.astype(dtype)
        if not np.isfinite(narrow[name]).all():
            raise UserError(f"{name}: expected numbers within {dtype}'s range, came larger ones", where, WRONG)
    return unflatten_dict(narrow, sep="/")


def _without_prefixes(arrays: files.Arrays, where: Path, say: Callable[[str], None]) -> files.Arrays:
    """Entries without the prefixes that `DataParallel`, `torch.compile`, Lightning and Flax's `{"params": ...}` add."""
    removed, bare = dict[str, None](), {}
    flax = any(name.endswith("kernel") for name in arrays)
    for name, array in arrays.items():
        short = PREFIX.sub("", name, count=1)
        removed[name.removesuffix(short)] = None
        if flax:
            short = short.replace(".", SEPARATOR["flax"])
        if short in bare:
            raise UserError(f"{short}: expected once, came as {name} too", where, WRONG)
        bare[short] = array
    if told := ", ".join(repr(prefix) for prefix in removed if prefix):
        say(f"note: {where}: removed the prefix {told} from the names")
    return bare


def _torch_files(where: Path) -> ModuleType:
    """`parity.torch_files`, which imports torch."""
    try:
        from parity import torch_files
    except ModuleNotFoundError as problem:
        if problem.name != "torch":
            raise
        todo = "pip install 'jaxcnn[parity]', or take a .safetensors"
        raise UserError("PyTorch is not installed, which a .pth needs", where, todo) from None
    return torch_files
